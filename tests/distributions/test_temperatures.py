"""A temperature for each particle: exact log-probabilities, and the temperature as a latent site."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Context, Importance, LLMStep, StepProposal, StepReward, barrier
from ppl_llm.constraints import Choices
from ppl_llm.inference import Enumeration, ParticlePosterior
from ppl_llm.lm.base import StepOptions
from tests.helpers.decision_mutants import WRONG_TEMPERATURES
from tests.helpers.reasoning import LM, PRM
from tests.helpers.served_table import local

TEMPERATURES = torch.tensor([0.4, 0.9, 1.7], dtype=torch.float64)
CHANCES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"stop": ";", "max_tokens": 2}


def written(ctx: Context, temperature: Any, steps: int = 2) -> Context:
    for t in range(steps):
        ctx = ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, temperature=temperature, **OPTIONS)), stop=";")
        pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
        if isinstance(temperature, Tensor) and temperature.dim():
            ctx, temperature = barrier((ctx, temperature))
        else:
            ctx = barrier(ctx)
    return ctx


def latent(problem: str = "a") -> Context:
    """The temperature is one of three, drawn with the solution."""
    which = pyro.sample("which", dist.Categorical(CHANCES))
    return written(LM.start(problem), TEMPERATURES[which])


def given(temperature: Any, problem: str = "a") -> Context:
    return written(LM.start(problem), temperature)


def texts(posterior: ParticlePosterior) -> dict[str, float]:
    found: dict[str, float] = {}
    for text, weight in zip(posterior.value.text, posterior.weights.tolist(), strict=True):
        found[text] = found.get(text, 0.0) + weight
    return found


def mixture_error() -> float:
    """The latent temperature against the mixture of programs at a number each: largest difference of evidence and of a probability."""
    joint = Enumeration(latent).run()
    parts = [Enumeration(given).run(float(t)) for t in TEMPERATURES]
    masses = CHANCES * torch.stack([part.log_evidence for part in parts]).exp()
    error = abs(float(joint.log_evidence.exp() - masses.sum()))
    posterior = masses / masses.sum()
    for which, p in joint.marginal(lambda ctx: None).probs.items():
        assert which is None and p == pytest.approx(1.0)
    chosen = joint.sites["which"]
    for k in range(3):
        error = max(error, abs(float(joint.weights[chosen == k].sum() - posterior[k])))
    expected: dict[str, float] = {}
    for share, part in zip(posterior.tolist(), parts, strict=True):
        for text, p in texts(part).items():
            expected[text] = expected.get(text, 0.0) + share * p
    found = texts(joint)
    assert found.keys() == expected.keys()
    return max(error, *(abs(found[text] - expected[text]) for text in expected))


def test_a_latent_temperature_is_the_mixture_of_given_ones() -> None:
    assert mixture_error() < 1e-12


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
def test_a_tensor_without_dimensions_is_a_number(temperature: float) -> None:
    one, other = (Enumeration(given).run(t) for t in (temperature, torch.tensor(temperature, dtype=torch.float64)))
    assert float(one.log_evidence) == pytest.approx(float(other.log_evidence), abs=1e-12)
    assert texts(one) == pytest.approx(texts(other), abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"top_k": 2}, {"constraint": Choices(["ab", "b;", "ba;"])}], ids=str)
def test_each_particle_has_the_log_probability_of_its_own_temperature(options: dict[str, Any]) -> None:
    """``[N, P]`` steps: sampled, scored again, and one by one at a number."""
    pyro.set_rng_seed(0)
    lm = local()
    context = lm.start(["a", "b"])
    temperature = torch.linspace(0.3, 2.0, 24, dtype=torch.float64).view(12, 2)
    step = LLMStep(context, temperature=temperature, **OPTIONS, **options)
    assert step.batch_shape == (12, 2)
    value = step.sample()
    drawn, scored = step.log_prob(value), step.log_prob(value.clone())
    assert torch.allclose(drawn.double(), scored.double(), atol=1e-6)
    for n in range(12):
        for p in range(2):
            alone = LLMStep(context[p], temperature=float(temperature[n, p]), **OPTIONS, **options)
            assert float(alone.log_prob(value[n, p])) == pytest.approx(float(scored[n, p]), abs=1e-6)


@pytest.mark.parametrize("name", WRONG_TEMPERATURES)
def test_rejects_wrong_temperatures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these changes the exact mixture by more than a thousand times its tolerance."""
    for target, value in WRONG_TEMPERATURES[name].items():
        monkeypatch.setattr(target, value)
    assert mixture_error() > 1e-3


def test_a_plate_of_problems_and_one_temperature_for_each_particle() -> None:
    """Under a plate, ``[N, 1]``; the particle filter passes the temperature through the barrier, and its audit compares it."""
    temperature = TEMPERATURES[torch.arange(6) % 3].view(6, 1)
    found = Importance(lambda p: plated(p, temperature), 6, max_plate_nesting=1, record_log_probs=True).run(["a", "b"])
    values, log_probs = found.sites["step_0"], found.site_log_probs["step_0"]
    for n in range(6):
        for p, problem in enumerate("ab"):
            alone = LLMStep(LM.start(problem), temperature=float(temperature[n]), **OPTIONS)
            assert float(alone.log_prob(values[n, p])) == pytest.approx(float(log_probs[n, p]), abs=1e-6)
    pyro.set_rng_seed(1)
    assert SMC(latent, 64, audit=True, ess_threshold=1.0).run().audit is not None


def plated(problems: list[str], temperature: Tensor) -> Context:
    ctx = LM.start(problems)
    with pyro.plate("problems", len(problems), dim=-1):
        return ctx.extend(pyro.sample("step_0", LLMStep(ctx, temperature=temperature, **OPTIONS)), stop=";")


def test_the_filter_estimates_the_mixture() -> None:
    """One batch of 4,000 particles, five standard errors: a false alarm of 6e-7; the largest bias that passes is 5 % of the evidence."""
    pyro.set_rng_seed(3)
    exact = float(Enumeration(latent).run().log_evidence)
    found = Importance(latent, 4000).run()
    w = found.log_weights.exp()
    error = float(w.std() / 4000**0.5)
    assert 5 * error < 0.05 * float(w.mean())
    assert abs(float(w.mean()) - float(torch.tensor(exact).exp())) < 5 * error


def test_a_proposal_keeps_the_temperature_of_each_particle() -> None:
    temperature = TEMPERATURES[torch.arange(8) % 3]
    prior = LLMStep(LM.start("a"), temperature=temperature, **OPTIONS)
    proposed = StepProposal(constraint=Choices(["ab", "b;"]))({"fn": prior, "name": "x"})
    assert proposed is not None and proposed.options.temperature is temperature and proposed.batch_shape == (8,)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (torch.tensor([1.0, 0.0]), r"temperature must be positive and finite everywhere: the tensor of shape \(2,\) has 0 at \(1,\)"),
        (torch.tensor([[1.0], [-2.0]]), r"the tensor of shape \(2, 1\) has -2 at \(1, 0\); for nearly greedy steps use a small one"),
        (torch.tensor([1.0, torch.nan]), r"has nan at \(1,\)"),
        (torch.tensor([1.0, torch.inf]), r"has inf at \(1,\)"),
        (torch.tensor([1, 2]), r"floating-point numbers, got one of torch.int64 and shape \(2,\)"),
    ],
)
def test_values_that_are_no_temperatures_are_one_clear_line(temperature: Tensor, message: str) -> None:
    for make in (lambda: StepOptions(temperature=temperature), lambda: LLMStep(LM.start("a"), temperature=temperature)):
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_tensor_of_another_shape_is_one_clear_line() -> None:
    context = LM.start("a").expand((4,))
    message = r"temperature has shape \(3,\), which does not broadcast to the steps' batch shape \(4,\): give a number, or one for each"
    with pytest.raises(ValueError, match=message):
        LLMStep(context, temperature=TEMPERATURES)
    for call in (
        lambda o: LM.sample_step(context, torch.Size([4]), o),
        lambda o: LM.step_log_prob(context, torch.tensor([0, 2]), o),
    ):
        with pytest.raises(ValueError, match=message):
            call(StepOptions(temperature=TEMPERATURES, **OPTIONS))
