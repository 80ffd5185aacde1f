"""The temperature as a latent site of the reasoning model: the mixture of models at a number each, and even draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import (
    SMC,
    Adaptive,
    Enumeration,
    GroupAgreement,
    Importance,
    ParticleGibbs,
    TwoStageVote,
    barrier,
    multi_temperature,
    reasoning,
)
from ppl_llm.evaluation.work import Unit, execute
from ppl_llm.methods import get_method, parse_method
from ppl_llm.programs.multi_temperature import EvenChoice
from ppl_llm.tasks.base import Problem
from tests.helpers.reasoning import LM, MAX_TOKENS, PRM

TEMPERATURES = [0.5, 1.0, 1.9]


def model(temperature: float = 1.0, **options: Any) -> Any:
    return reasoning(LM, PRM, stop=";", max_steps=2, max_tokens=MAX_TOKENS, temperature=temperature, **options)


def text(context: Any) -> str:
    return str(context.text)


def test_it_is_the_mixture_of_models_at_each_temperature() -> None:
    joint = Enumeration(multi_temperature(model(), TEMPERATURES)).run("a")
    parts = [Enumeration(model(t)).run("a") for t in TEMPERATURES]
    masses = torch.stack([part.log_evidence for part in parts]).exp() / len(TEMPERATURES)
    assert float(joint.log_evidence.exp()) == pytest.approx(float(masses.sum()), abs=1e-12)
    preferred = joint.marginal(lambda context: float(context.temperature))
    expected: Counter[str] = Counter()
    for t, mass, part in zip(TEMPERATURES, (masses / masses.sum()).tolist(), parts, strict=True):
        assert preferred[t] == pytest.approx(mass, abs=1e-12)
        expected.update({each: mass * p for each, p in part.marginal(text).probs.items()})
    assert dict(joint.marginal(text).probs) == pytest.approx(dict(expected), abs=1e-12)


@pytest.mark.parametrize("problem", ["a", ["a", "b", "ba"]])
def test_particles_share_the_temperatures_evenly_and_keep_them(problem: Any) -> None:
    """Of 12 particles four have each; the log-probability of a step is that at its own, also after resampling (audited)."""
    pyro.set_rng_seed(0)
    nesting = int(isinstance(problem, list))
    tempered = multi_temperature(model(), TEMPERATURES)
    found = Importance(tempered, 12, max_plate_nesting=nesting, record_log_probs=True).run(problem)
    drawn = found.sites["temperature"].reshape(12, -1)
    for column in drawn.T.tolist():
        assert Counter(column) == dict.fromkeys(TEMPERATURES, 4)
    assert torch.equal(found.value.temperature, found.sites["temperature"])
    assert SMC(tempered, 12, ess_threshold=1.0, audit=True, max_plate_nesting=nesting).run(problem).audit is not None


def test_draws_are_uniform_and_take_turns() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    torch.manual_seed(0)
    drawn = torch.stack([EvenChoice(values).expand([4, 5]).sample() for _ in range(600)])
    assert drawn.shape == (600, 4, 5)
    assert bool(((drawn[:, 1] - drawn[:, 0]) % 3 == 1).all())
    shares = (drawn == 1.0).double().mean(0)
    assert float((shares - 1 / 3).abs().max()) < 5 * (2 / 9 / 600) ** 0.5  # five standard errors
    assert EvenChoice(values).log_prob(torch.tensor([2.0, 2.5])).exp().tolist() == pytest.approx([1 / 3, 0.0])


def favourites() -> Any:
    """x is 0 or 1, and 0 has four times the factor of 1."""
    with pyro.plate("problems", REPLICATES, dim=-1):
        x = pyro.sample("x", EvenChoice(torch.tensor([0.0, 1.0])))
        pyro.factor("favour", torch.where(x == 0, math.log(4.0), 0.0))
        return barrier(x)


REPLICATES = 100_000


def z_value_of_a_sweep() -> float:
    """Of the share of 0 after one sweep of three particles, from references of the exact posterior (4/5)."""
    pyro.set_rng_seed(0)
    references = (torch.rand(REPLICATES) >= 0.8).float()
    kernel = ParticleGibbs(favourites, 3, max_plate_nesting=1)
    after = kernel.sweep({"x": references}).draw()["x"]
    return float((after == 0).double().mean() - 0.8) / (0.16 / REPLICATES) ** 0.5


def test_a_sweep_that_keeps_a_reference_draws_the_others_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Particle Gibbs leaves the posterior invariant (false alarm 1e-6). Particles that take turns beside a reference do not: 35 sigma."""
    assert abs(z_value_of_a_sweep()) < 4.9
    monkeypatch.setattr(EvenChoice, "independently", lambda self: self)
    assert z_value_of_a_sweep() > 20


def test_a_vote_across_temperatures_stops_early() -> None:
    """A model that writes one text at any temperature: three votes of each settle it."""
    pyro.set_rng_seed(0)
    algorithm = TwoStageVote(multi_temperature(model(), TEMPERATURES), 3, "temperature", answer=lambda context: "same")
    found = Adaptive(algorithm, GroupAgreement(0.9), 30, answer=lambda context: "same").run("a")
    assert (found.num_drawn, found.stopped) == (9, True)


@pytest.mark.parametrize(
    ("temperatures", "options", "message"),
    [
        ([], {}, "temperatures must be positive numbers, at least one"),
        ([1.0, 0.0], {}, "temperatures must be positive numbers"),
        ([1.0, 1.0], {}, "temperatures must differ"),
        ([1.0], {"power": 2.0}, "a model without a power, this one has 2.0"),
    ],
)
def test_temperatures_that_make_no_sense(temperatures: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_temperature(model(**options), temperatures)


def test_methods_by_name() -> None:
    assert get_method("multi-temperature:temperatures=0.5,1.5").sized(7)["particles"] == 6
    assert get_method("multi-temperature").least == 3
    assert get_method("soft-best-of-n:beta=3").vote_options == {"beta": 3.0}
    assert get_method("best-of-majority:k=2").vote_options == {"k": 2, "frequency": 0.1}
    assert parse_method("best-of-majority:k=2:particles=8").options == {"k": 2, "particles": 8}
    with pytest.raises(ValueError, match="particles must be a multiple of the number of temperatures"):
        parsed = parse_method("multi-temperature:particles=10")
        parsed.method.start(model(), parsed.options)
    with pytest.raises(ValueError, match=r"temperatures must be numbers separated by commas, such as 0\.6,1,1\.4, got 'hot'"):
        get_method("multi-temperature:temperatures=hot")


class Texts:
    """Answers are the first symbols; the first problem's right one is a rare one."""

    def __init__(self, right: str) -> None:
        self.right = right

    @property
    def description(self) -> dict[str, Any]:
        return {"right": self.right}

    def score(self, answer: str) -> float:
        return float(answer.startswith(self.right))


def test_records_have_the_temperatures_and_what_was_submitted() -> None:
    problems = [Problem("p", "a", verifier=Texts("b"))]
    answering = model(answer_fallback="text")
    (record,) = execute(Unit(0, ("multi-temperature:temperatures=0.5,1.5",), (6,), 0), answering, problems)
    assert sorted(c["temperature"] for c in record["candidates"]) == [0.5] * 3 + [1.5] * 3
    methods = ("importance", "soft-best-of-n:beta=0", "best-of-majority:k=3:frequency=0")
    records = {r["method"]: r for r in execute(Unit(0, methods, (12,), 0), answering, problems)}
    submitted = records[methods[2]]["submitted"]
    assert len(submitted) == 3 and records[methods[2]]["answer"] == submitted[0]
    assert records[methods[2]]["correct"] is any(answer.startswith("b") for answer in submitted)
    counts = Counter(c["answer"] for c in records["importance"]["candidates"])
    assert counts[records[methods[1]]["answer"]] == max(counts.values()) and "submitted" not in records[methods[1]]
