"""LookAhead: what it scores, what it is good for, its errors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Context, LLMStep, LookAhead, StepReward, TabularLM, TabularReward, barrier, reasoning
from ppl_llm.lm.base import StepOptions, StepSample
from tests.helpers.reasoning import LM, PRM, solve, trajectories
from tests.ppl_llm.programs.test_look_ahead_exact import LOGITS, REWARD, SYMBOLS


def particles(texts: list[str]) -> Context:
    """Contexts after given one-token steps."""
    context = TabularLM(LOGITS, SYMBOLS, eos="$").start(["a"] * len(texts))
    for t in range(max(map(len, texts))):
        context = context.extend(torch.tensor([[SYMBOLS.index(text[t])] if t < len(text) else [-1] for text in texts]), stop="z")
    return context


class Scripted(TabularLM):
    def sample_step(self, context: Context, particles: Any, options: StepOptions) -> StepSample:
        return StepSample(torch.tensor([[0], [1], [1], [-1]]), torch.zeros(particles))


def scored_factor(look_ahead: LookAhead, context: Context) -> list[float]:
    return look_ahead.log_factor(context).tolist()


def test_it_scores_the_step_to_come() -> None:
    """Not the present text, as where the look-ahead's text is generated and then left out of what is scored (search-and-learn)."""
    context = particles(["a", "a", "b", "$"])
    successors = particles(["aa", "ab", "bb", "$"])
    lm = Scripted(LOGITS, SYMBOLS, eos="$")
    expected = torch.where(successors.advanced, REWARD.step_log_odds(successors)[:, -1].double().sigmoid().log(), 0.0)
    look_ahead = LookAhead(lm, REWARD, StepOptions("z", 1))
    assert scored_factor(look_ahead, context) == pytest.approx(expected.tolist(), abs=1e-6)
    assert scored_factor(look_ahead, context)[3] == 0.0  # a finished particle has nothing to come

    class Unused(LookAhead):
        def log_factor(self, context: Context) -> Tensor:
            super().log_factor(context)
            return self.prm.step_log_odds(context)[..., -1].double().sigmoid().log()

    wrong = scored_factor(Unused(lm, REWARD, StepOptions("z", 1)), context)
    assert max(abs(a - b) for a, b in zip(wrong, expected.tolist(), strict=True)) > 0.1


def test_factors_follow_the_models_potential() -> None:
    context, successors = particles(["a", "a", "b", "$"]), particles(["aa", "ab", "bb", "$"])
    z = REWARD.step_log_odds(successors).double().sigmoid().log()
    look_ahead = LookAhead(Scripted(LOGITS, SYMBOLS, eos="$"), REWARD, StepOptions("z", 1), potential="difference", aggregation="min")
    expected = torch.where(successors.advanced, z.amin(-1) - z[:, 0], 0.0)
    assert scored_factor(look_ahead, context) == pytest.approx(expected.tolist(), abs=1e-6)


def test_factors_have_a_floor() -> None:
    context = particles(["a", "a", "b", "$"])
    hopeless = TabularReward(torch.tensor([-math.inf, 0.0, 0.0]))
    look_ahead = LookAhead(Scripted(LOGITS, SYMBOLS, eos="$"), hopeless, StepOptions("z", 1), floor=0.01)
    assert min(scored_factor(look_ahead, context)) == pytest.approx(math.log(0.01))


def test_it_lowers_the_variance_where_the_next_step_decides() -> None:
    """Symbol b is worth little by itself and a, which always follows it, a lot: the evidence of 4000 filters of 8 particles.

    Measured: a fourth less variance.
    """
    logits = torch.tensor([[0.0, -1.5, -9.0], [9.0, 0.0, -9.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    class AfterB(TabularReward):
        def step_log_odds(self, context: Context) -> Tensor:
            tokens = context.tokens[..., 1:]
            before = torch.cat([torch.zeros_like(tokens[..., :1]), tokens[..., :-1]], -1)
            return torch.where((tokens == 0) & (before == 1), 6.0, -2.0).float()[..., : context.num_steps]

    lm = TabularLM(logits, SYMBOLS, eos="$")
    model = reasoning(lm, AfterB(torch.zeros(3)), "exact", stop="z", max_tokens=1, max_steps=3)
    variances, means = [], []
    for selection in (None, LookAhead.of(model)):
        pyro.set_rng_seed(0)
        z_hat = SMC(model, 8, ess_threshold=1.0, selection=selection, max_plate_nesting=1).run(["a"] * 4000).log_evidence.exp()
        variances.append(float(z_hat.var()))
        means.append(float(z_hat.mean()))
        assert abs(means[-1] - means[0]) < 4.9 * math.sqrt(sum(variances) / 4000)
    assert variances[1] < 0.85 * variances[0]


def test_audit_and_states_with_more_than_a_context() -> None:
    pyro.set_rng_seed(1)

    def threaded(problem: str) -> Context:
        ctx, state = LM.start(problem), None
        for t in range(3):
            step = pyro.sample(f"step_{t}", LLMStep(ctx, ";", 2))
            ctx = ctx.extend(step, stop=";")
            pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
            state = barrier({"count": t, "particles": [step, ctx]})
            ctx = state["particles"][1]
        return ctx

    look_ahead = LookAhead(LM, PRM, StepOptions(";", 2))
    posterior = SMC(threaded, 50, ess_threshold=1.0, selection=look_ahead, audit=True).run("a")
    assert posterior.audit is not None and posterior.audit.error == 0.0
    assert len(posterior.log_weights.unique()) > 5  # residual weights


def test_unbiased_on_the_program_of_the_other_tests() -> None:
    """2000 filters of four particles; false alarm 1e-6."""
    pyro.set_rng_seed(2)
    exact = sum(p * math.prod(1 / (1 + math.exp(-s)) for s in z) for _, _, p, z, _ in trajectories())

    def replicas() -> Context:
        with pyro.plate("problems", 2000, dim=-1):
            return solve(["a"] * 2000)

    look_ahead = LookAhead(LM, PRM, StepOptions(";", 2, 1.3), power=0.7)
    z_hat = SMC(replicas, 4, ess_threshold=0.8, selection=look_ahead, max_plate_nesting=1).run().log_evidence.exp()
    assert abs(float(z_hat.mean()) - exact) < 4.9 * float(z_hat.std()) / math.sqrt(2000)
    assert float(z_hat.std()) / math.sqrt(2000) < 0.02 * exact


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"power": -1.0}, "power must be a number of at least 0, got -1.0"),
        ({"power": math.nan}, "power must be a number of at least 0, got nan"),
        ({"floor": 0.0}, r"floor must lie in \(0, 1\), got 0.0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LookAhead(LM, PRM, **kwargs)


def test_a_state_without_a_context() -> None:
    def plain() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", x)
        barrier(x)

    with pytest.raises(ValueError, match="LookAhead needs a Context in what the model passes to barrier"):
        SMC(plain, 8, ess_threshold=1.0, selection=LookAhead(LM, PRM)).run()
