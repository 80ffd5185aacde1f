"""Steering potentials: their formulas, and the product over a trajectory, which must telescope to exp(lambda r_T)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import SMC, Enumeration, Importance, StepReward, reasoning
from ppl_llm.distributions import potentials, step_reward
from ppl_llm.distributions.potentials import STEERING, steering_log_factor
from tests.distributions.test_step_reward import GivenScores, after_steps, aggregate, sigmoid
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, trajectories

AGGREGATIONS = ["last", "prod", "min", "max", "mean", "window:2"]
EXACT = 1e-12


def program(potential: str, aggregation: str = "prod", score: str = "log_prob", score_temperature: float = 1.0, **kwargs: Any) -> Any:
    return reasoning(
        LM,
        PRM,
        "twisted",
        potential=potential,
        aggregation=aggregation,
        score=score,
        score_temperature=score_temperature,
        stop=";",
        max_tokens=MAX_TOKENS,
        max_steps=MAX_STEPS,
        **kwargs,
    )


def prefix_score(z: list[float], aggregation: str, score: str) -> float:
    """r_t in plain Python."""
    if score == "log_odds" and aggregation in ("last", "min", "max"):
        return {"last": z[-1], "min": min(z), "max": max(z)}[aggregation]
    s = aggregate([sigmoid(value) for value in z], aggregation)
    return math.log(s) if score == "log_prob" else math.log(s) - math.log1p(-s)


def telescoping_error(model: Any, aggregation: str, score: str, temperature: float) -> float:
    """Largest difference of a drawn trajectory's log-weight from lambda r_T, relative to its size."""
    pyro.set_rng_seed(0)
    posterior = Importance(model, 200).run("a")
    z = PRM.step_log_odds(posterior.value).tolist()
    done = posterior.value.done
    assert bool(done.any()) and not bool(done.all())  # finished early, and cut off by the last step
    assert {1, 2, 3} <= set(posterior.lengths.tolist())
    expected = [prefix_score(row[:length], aggregation, score) / temperature for row, length in zip(z, posterior.lengths, strict=True)]
    want = torch.tensor(expected, dtype=torch.float64)
    return float(((posterior.log_weights - want).abs() / want.abs().clamp(min=1)).max())


CASES = list(itertools.product(STEERING, AGGREGATIONS, ["log_prob", "log_odds"], [1.0, 0.4]))


@pytest.mark.parametrize(("potential", "aggregation", "score", "temperature"), CASES)
def test_the_product_telescopes(potential: str, aggregation: str, score: str, temperature: float) -> None:
    """Over 200 drawn trajectories of 1 to 3 steps, to 1e-12."""
    model = program(potential, aggregation, score, temperature)
    assert telescoping_error(model, aggregation, score, temperature) < EXACT


def test_it_also_telescopes_with_empty_rounds_at_the_end() -> None:
    for potential in STEERING:
        assert telescoping_error(program(potential, early_exit=False), "prod", "log_prob", 1.0) < EXACT


# Wrong potentials
def transformed_terminal(potential: str, scaled: Tensor, terminal: Tensor) -> Tensor:
    """The terminal numerator is the running max or sum instead of r_T (Fk-Diffusion-Steering, fkd_class.py:110-131)."""
    if potential == "difference":
        return steering_log_factor(potential, scaled, terminal)
    log_factors = scaled.cummax(-1).values if potential == "max" else scaled.cumsum(-1)
    return log_factors[..., -1] - torch.where(terminal, log_factors[..., :-1].sum(-1), 0.0)


def no_terminal(potential: str, scaled: Tensor, terminal: Tensor) -> Tensor:
    """No correction at the end: the target is the product of the potentials."""
    return steering_log_factor(potential, scaled, torch.zeros_like(terminal))


def repeated_terminal(potential: str, scaled: Tensor, terminal: Tensor) -> Tensor:
    """The correction subtracts the last factor too."""
    return steering_log_factor(potential, scaled, terminal) - torch.where(terminal & (potential != "difference"), scaled[..., -1], 0.0)


WRONG: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
    "transformed terminal": transformed_terminal,
    "no terminal": no_terminal,
    "terminal subtracted": repeated_terminal,
}


def evidence(potential: str, **kwargs: Any) -> float:
    return float(Enumeration(program(potential, **kwargs)).run("a").log_evidence.exp())


def exact_evidence(aggregation: str, score: str, temperature: float) -> float:
    return sum(p * math.exp(prefix_score(list(z), aggregation, score) / temperature) for _, _, p, z, _ in trajectories())


@pytest.mark.parametrize(("potential", "score"), list(itertools.product(STEERING, ["log_prob", "log_odds"])))
def test_all_have_the_same_target(potential: str, score: str) -> None:
    """Evidence by enumeration against plain arithmetic over all trajectories."""
    model = program(potential, "last", score, score_temperature=2.0, temperature=TEMPERATURE)
    found = float(Enumeration(model).run("a").log_evidence.exp())
    assert found == pytest.approx(exact_evidence("last", score, 2.0), rel=1e-6)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("potential", ["max", "sum"])
def test_rejects_wrong_terminal_factors(name: str, potential: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Effect sizes: log-weights wrong by more than 0.1, the evidence by more than 2 %."""
    right = evidence(potential, aggregation="last")
    monkeypatch.setattr(step_reward, "steering_log_factor", WRONG[name])
    assert telescoping_error(program(potential, "last"), "last", "log_prob", 1.0) > 0.1
    assert abs(evidence(potential, aggregation="last") / right - 1) > 0.02


def test_rejects_sequences_cut_off_without_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal factor on sequences that finish only: a trajectory cut off keeps the product of its potentials."""

    def finished_only(self: Any, *args: Any, last_step: bool = False, **kwargs: Any) -> None:
        original(self, *args, last_step=False, **kwargs)

    original = StepReward.__init__
    monkeypatch.setattr(StepReward, "__init__", finished_only)
    for potential in ("max", "sum"):
        assert telescoping_error(program(potential, "last"), "last", "log_prob", 1.0) > 0.1


def test_filters_estimate_the_evidence_without_bias() -> None:
    """1500 filters of four particles for each potential, resampling always; false alarm 1e-6 (|z| < 4.9), standard error below 1.5 %."""
    exact = evidence("difference", aggregation="last")
    for potential in STEERING:
        pyro.set_rng_seed(1)
        model = program(potential, "last")
        z_hat = SMC(model, 4, ess_threshold=1.0, max_plate_nesting=1).run(["a"] * 1500).log_evidence.exp()
        error = float(z_hat.std()) / math.sqrt(len(z_hat))
        assert abs(float(z_hat.mean()) - exact) < 4.9 * error
        assert error < 0.015 * exact


scores = st.lists(st.floats(-6, 6), min_size=1, max_size=4)


@given(scores=scores, ends=st.booleans())
def test_factors_of_one_step(scores: list[float], ends: bool) -> None:
    """G_t of every potential against its formula."""
    scaled, terminal = torch.tensor([scores], dtype=torch.float64), torch.tensor([ends])
    before = [0.0, *scores][-2]
    past = [scores[:t] for t in range(1, len(scores))]
    expected = {
        "difference": scores[-1] - before,
        "max": scores[-1] - sum(max(s) for s in past) if ends else max(scores),
        "sum": scores[-1] - sum(sum(s) for s in past) if ends else sum(scores),
    }
    for potential, value in expected.items():
        assert steering_log_factor(potential, scaled, terminal).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("potential", STEERING)
@pytest.mark.parametrize("row", [[-math.inf, -1.0], [-math.inf, -math.inf], [-1.0, -math.inf], [-math.inf], [-1.0, -math.inf, -1.0]])
@pytest.mark.parametrize("ends", [False, True])
def test_a_score_of_zero_kills_a_sequence_for_good(potential: str, row: list[float], ends: bool) -> None:
    """Neither nan nor +inf, whatever comes after; ``max`` forgives a zero until the sequence ends with one."""
    total = 0.0
    for t in range(1, len(row) + 1):
        terminal = torch.tensor(ends and t == len(row))
        factor = steering_log_factor(potential, torch.tensor(row[:t], dtype=torch.float64), terminal).item()
        assert not math.isnan(factor) and factor < math.inf
        total += factor
    forgiven = potential == "max" and not math.isinf(max(row)) and row[0] != -math.inf and not (ends and math.isinf(row[-1]))
    assert (total == -math.inf) != forgiven


def test_running_scores_agree_with_those_of_each_prefix() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 4 * torch.randn(50, 6, generator=generator)
    real = torch.ones(50, 6, dtype=torch.bool)
    for aggregation, (running, prefix) in itertools.product(
        AGGREGATIONS,
        [(potentials.running_log_score, potentials.prefix_log_score), (potentials.running_log_odds, potentials.prefix_log_odds)],
    ):
        whole = running(z, real, aggregation)
        for t in range(1, 7):
            torch.testing.assert_close(whole[:, t - 1], prefix(z[:, :t], real[:, :t], aggregation), atol=2e-3, rtol=1e-4)


def test_windows_end_at_the_last_step_that_was_scored() -> None:
    """Steps without a score count for nothing, and do not fill a window."""
    r = torch.tensor([0.2, 0.9, 0.4, 0.7], dtype=torch.float64)
    real = torch.tensor([True, False, True, True])
    found = potentials.running_log_score(r.logit(), real, "window:2").exp()
    torch.testing.assert_close(found, torch.tensor([0.2, 0.2, 0.3, 0.55], dtype=torch.float64), atol=1e-12, rtol=0)
    assert potentials.running_log_score(r.logit(), real & False, "window:2").tolist() == [0.0] * 4
    extreme = torch.tensor([-900.0, -900.0], dtype=torch.float64)
    assert potentials.prefix_log_score(extreme, real[2:], "window:2").item() == pytest.approx(-900.0)


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        ("window", "number of steps of its window, at least 1, such as window:3, got 'window'"),
        ("window:0", "at least 1, such as window:3, got 'window:0'"),
        ("window:x", "got 'window:x'"),
        ("windows:3", "unknown aggregation 'windows:3'; did you mean 'window:3'"),
        ("most", "unknown aggregation 'most'"),
    ],
)
def test_what_is_no_aggregation_is_refused_by_name(aggregation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program("difference", aggregation)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("likelihood",), {"score": "log_odds"}, "score='log_odds' goes with the potentials difference, max, sum"),
        (("odds",), {"score": "log_odds"}, "potential 'odds' has its own"),
        (("difference",), {"score": "odds"}, "unknown score 'odds'; did you mean 'log_odds'"),
        (("max",), {"finished": "repeat"}, "finished='repeat' undoes the telescoping product of potential 'max'"),
        (("max",), {"temperature": -1.0}, "temperature must be positive, got -1.0"),
    ],
)
def test_bad_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepReward(GivenScores(torch.zeros(1, 1)), after_steps([0], 1), *args, **kwargs)


def test_models_fail_before_work_is_lost() -> None:
    """What does not go together is an error of ``reasoning``, not of the first step."""
    with pytest.raises(ValueError, match=r"unknown potential 'ratio'\. Known: likelihood, odds, difference, max, sum"):
        reasoning(LM, PRM, "twisted", potential="ratio")
    with pytest.raises(ValueError, match="aggregation and temperature go with the other potentials: odds, difference, max, sum"):
        reasoning(LM, PRM, "exact", score_temperature=2.0)
    with pytest.raises(ValueError, match="score='log_odds' goes with the potentials difference, max, sum"):
        reasoning(LM, PRM, "as_paper", score="log_odds")
    with pytest.raises(ValueError, match="finished='repeat' undoes the telescoping product of potential 'max'"):
        reasoning(LM, PRM, "as_paper", potential="max")
