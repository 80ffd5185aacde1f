"""StepReward: potentials, aggregations and finished sequences, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import PAD, Context, StepReward, TabularLM

LM = TabularLM(torch.zeros(4, 4), ["a", "b", ";", "$"], eos="$")


class GivenScores:
    """A reward model that returns what it was given, as real ones do: finished sequences repeat their last score."""

    def __init__(self, z: Tensor) -> None:
        self.z = z
        self.calls = 0

    def step_log_odds(self, context: Context) -> Tensor:
        self.calls += 1
        return self.z[..., : context.num_steps]


def after_steps(lengths: list[int], steps: int) -> Context:
    """Sequences that end the text at step ``lengths[i]`` (0: never)."""
    context = LM.start("a")
    for t in range(1, steps + 1):
        rows = [[PAD, PAD] if 0 < n < t else [3, PAD] if n == t else [0, 2] for n in lengths]
        context = context.extend(torch.tensor(rows), stop=";")
    return context


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def aggregate(scores: list[float], how: str) -> float:
    if how.startswith("window:"):
        last = scores[-int(how.removeprefix("window:")) :]
        return sum(last) / len(last)
    return {"last": scores[-1], "prod": math.prod(scores), "min": min(scores), "max": max(scores), "mean": sum(scores) / len(scores)}[how]


logs = st.floats(-6, 6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    z=st.lists(logs, min_size=3, max_size=3),
    how=st.sampled_from(["last", "prod", "min", "max", "mean", "window:1", "window:2", "window:7"]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_formulas(z: list[float], how: str, temperature: float) -> None:
    """Likelihood, odds and difference against plain arithmetic; the ratios of all steps telescope to the last score."""
    prm = GivenScores(torch.tensor([z]))
    r = [sigmoid(value) for value in z]
    total = 0.0
    one = torch.tensor(1.0)
    for t in range(1, 4):
        context = after_steps([0], t)
        s, before = aggregate(r[:t], how), aggregate(r[: t - 1], how) if t > 1 else 1.0
        assert StepReward(prm, context).log_prob(one).item() == pytest.approx(math.log(r[t - 1]), abs=1e-4)
        assert StepReward(prm, context).log_prob(one * 0).item() == pytest.approx(math.log(1 - r[t - 1]), abs=1e-4)
        odds = StepReward(prm, context, "odds", temperature=temperature, aggregation=how).log_prob(one).item()
        assert odds == pytest.approx(math.log(s / (1 - s)) / temperature, abs=2e-3)
        ratio = StepReward(prm, context, "difference", aggregation=how).log_prob(one).item()
        assert ratio == pytest.approx(math.log(s / before), abs=1e-4)
        total += ratio
    assert total == pytest.approx(math.log(aggregate(r, how)), abs=1e-4)


@pytest.mark.parametrize("potential", ["likelihood", "odds", "difference", "max", "sum"])
def test_finished_sequences_have_factor_exactly_one(potential: str) -> None:
    context = after_steps([1, 2, 0], 3)
    z = torch.tensor([[1.0, 1.0, 1.0], [1.0, -2.0, -2.0], [1.0, 1.0, 0.5]])
    log_factor = StepReward(GivenScores(z), context, potential).log_prob(torch.tensor(1.0))
    assert log_factor[:2].tolist() == [0.0, 0.0]
    assert log_factor[2].item() != 0.0


def test_a_finished_sequence_can_repeat_its_last_factor() -> None:
    context = after_steps([1, 0], 3)
    z = torch.tensor([[0.7, 0.7, 0.7], [1.0, 1.0, -1.5]])
    log_factor = StepReward(GivenScores(z), context, "odds", finished="repeat").log_prob(torch.tensor(1.0))
    torch.testing.assert_close(log_factor, torch.tensor([0.7, -1.5]))


@pytest.mark.parametrize("z", [-60.0, -16.0, 16.0, 60.0])
def test_extreme_log_odds_are_neither_clamped_nor_nan(z: float) -> None:
    """Bernoulli(probs=0) clamps at -15.9 and Bernoulli(logits=-inf) is nan in torch."""
    context = after_steps([0], 1)
    log_factor = StepReward(GivenScores(torch.tensor([[z]])), context).log_prob(torch.tensor(1.0)).item()
    assert log_factor == pytest.approx(min(z, 0.0) - math.exp(-abs(z)), rel=1e-6, abs=1e-30)
    assert StepReward(GivenScores(torch.tensor([[-math.inf]])), context).log_prob(torch.tensor(1.0)).item() == -math.inf


def test_construction_asks_nothing_of_the_model() -> None:
    prm = GivenScores(torch.zeros(1, 1))
    StepReward(prm, after_steps([0], 1)).expand([1]).expand([5, 1])
    assert prm.calls == 0


def test_sampling() -> None:
    torch.manual_seed(0)
    context = after_steps([1, 0], 2)
    reward = StepReward(GivenScores(torch.tensor([[-9.0, -9.0], [0.0, math.log(3.0)]])), context)
    drawn = reward.sample((4000,))
    assert drawn[:, 0].min() == 1.0  # finished: the event is certain
    assert abs(drawn[:, 1].mean() - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)
    with pytest.raises(TypeError, match="potential 'odds' is a factor, not a distribution"):
        StepReward(GivenScores(torch.zeros(2, 2)), context, "odds").sample()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("likelyhood",), {}, "unknown potential 'likelyhood'; did you mean 'likelihood'"),
        (("odds",), {"aggregation": "median"}, "unknown aggregation 'median'"),
        (("odds",), {"finished": "drop"}, "unknown finished 'drop'"),
        (("odds",), {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (("likelihood",), {"aggregation": "prod"}, "the score of the new step alone"),
    ],
)
def test_bad_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepReward(GivenScores(torch.zeros(1, 1)), after_steps([0], 1), *args, **kwargs)


def test_potentials_have_no_value_for_the_event_zero() -> None:
    with pytest.raises(ValueError, match="no value for the event 0"):
        StepReward(GivenScores(torch.zeros(1, 1)), after_steps([0], 1), "odds").log_prob(torch.tensor(0.0))
