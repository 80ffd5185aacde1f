"""Tables, curves and ratios from records made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ppl_llm.evaluation.results import Results, _budget_ratio


def record(problem: str, method: str, budget: int, seed: int, correct: bool, **more: Any) -> dict[str, Any]:
    base = {"problem": problem, "method": method, "budget": budget, "seed": seed, "correct": correct, "gold": "1", "level": 1}
    return {**base, "cost": {"tokens_sampled": 10.0 * budget}, **more}


def sample(answer: str, *log_odds: float, tokens: int = 5) -> dict[str, Any]:
    return {"answer": answer, "weight": 1.0, "log_odds": list(log_odds), "tokens": tokens, "finished": True, "path": answer}


POOL = [sample("2", 1.0), sample("1", 3.0, tokens=3), sample("2", 1.5), sample("1", 0.0)]


def results() -> Results:
    rows = []
    for problem, seed, right in [("p", 0, True), ("p", 1, False), ("q", 0, True), ("q", 1, True)]:
        rows += [record(problem, "smc", 4, seed, right), record(problem, "smc", 8, seed, True)]
        rows.append(record(problem, "importance", 4, seed, False, candidates=POOL))
    return Results(rows)


def test_accuracy_and_differences() -> None:
    found = results()
    assert found.methods == ["smc", "importance"] and found.budgets("smc") == [4, 8] and found.seeds == [0, 1]
    assert found.table("smc", 4).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert np.isnan(found.table("smc", 16)).all()
    accuracy = found.accuracy("smc", 4)
    assert accuracy.value == 0.75 and accuracy.low < 0.75 < accuracy.high
    assert found.accuracy("smc", 4, ["p"]).value == 0.5
    paired = found.difference(("smc", 8), ("importance", 4))
    assert (paired.value, paired.low, paired.high) == (1.0, 1.0, 1.0)
    assert found.mean_cost("smc", 8) == 80.0 and found.levels == {"p": 1, "q": 1}
    with pytest.raises(ValueError, match="no records"):
        Results([])


def test_votes_are_recomputed_from_the_samples() -> None:
    found = results()
    right = {vote: found.offline(vote, 4).mean() for vote in ("majority", "best-of-n, last", "weighted, last", "first-finish")}
    assert right == {"majority": 0.0, "best-of-n, last": 1.0, "weighted, last": 0.0, "first-finish": 1.0}
    assert found.offline("majority", 1).mean() == 0.0 and np.isnan(found.offline("majority", 8)).all()
    assert found.coverage([1, 2, 4]) == pytest.approx([0.5, 1 - 1 / 6, 1.0])


def test_a_vote_of_ones_own() -> None:
    assert results().offline("last", 2, {"last": lambda pool: pool[-1].answer}).mean() == 1.0


def test_budget_ratio_of_shifted_curves() -> None:
    """The same curve at a quarter of the budget has ratio 4; curves that do not overlap have none."""
    budgets = [1, 2, 4, 8, 16, 32]
    curve = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert _budget_ratio(budgets, curve, [4 * b for b in budgets], curve) == pytest.approx(4.0)
    assert _budget_ratio(budgets, curve, budgets, curve) == pytest.approx(1.0)
    assert _budget_ratio(budgets, curve, budgets, curve + 0.1) == pytest.approx(0.5)
    assert math.isnan(_budget_ratio(budgets, curve, budgets, np.full(6, 0.9)))
