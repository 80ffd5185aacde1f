"""Ratios of budgets: by hand, by simulation with a known ratio, and bounds where there is no ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ppl_llm.evaluation.budget_ratio import BudgetRatio, bootstrap_ratio, budget_ratios
from tests.helpers.wrong_statistics import of_overlapping_draws

BUDGETS = [1, 2, 4, 8, 16, 32]


def test_shifted_curves() -> None:
    """The same curve at a quarter of the budget has ratio 4; curves that do not overlap have a bound on one side."""
    curve = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert budget_ratios(BUDGETS, curve, [4 * b for b in BUDGETS], curve) == pytest.approx(4.0)
    assert budget_ratios(BUDGETS, curve, BUDGETS, curve) == pytest.approx(1.0)
    assert budget_ratios(BUDGETS, curve, BUDGETS, curve + 0.1) == pytest.approx(0.5)
    assert budget_ratios(BUDGETS, curve, BUDGETS, np.full(6, 0.9)) == 0.0
    assert budget_ratios(BUDGETS, np.full(6, 0.9), BUDGETS, curve) == math.inf
    assert np.isnan(budget_ratios(BUDGETS, curve, BUDGETS, np.full(6, math.nan)))
    assert budget_ratios(BUDGETS, np.full(6, 0.5), BUDGETS, np.full(6, 0.5)) == 1.0


def test_a_plateau_is_reached_at_its_first_budget() -> None:
    flat = np.array([0.2, 0.4, 0.4, 0.3, 0.4, 0.6])
    rising = np.array([0.4, 0.41, 0.42, 0.43, 0.44, 0.45])
    level = np.linspace(0.4, 0.45, 21)[1:-1]
    needed = np.exp(np.log(16) + (level - 0.4) / 0.2 * math.log(2))
    own = np.exp((level - 0.4) / 0.05 * 5 * math.log(2))
    assert budget_ratios(BUDGETS, rising, BUDGETS, flat) == pytest.approx(np.exp(np.mean(np.log(needed / own))))


def test_many_curves_at_once_are_each_of_them() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((50, 6)), rng.random((50, 6))
    together = budget_ratios(BUDGETS, first, BUDGETS, second)
    assert together.tolist() == [float(budget_ratios(BUDGETS, a, BUDGETS, b)) for a, b in zip(first, second, strict=True)]


def curves(rng: np.random.Generator, budgets: list[int], ratio: float, problems: int, seeds: int) -> list[NDArray[np.float64]]:
    """Hits of two methods, of which the second needs ``ratio`` times the budget."""
    hard = rng.normal(-0.5, 1.5, size=(problems, 1, 1))
    chances = [1 / (1 + np.exp(-(hard + 0.8 * np.log2(np.array(budgets) / shift)))) for shift in (1, ratio)]
    return [(rng.random((problems, seeds, len(budgets))) < chance).astype(np.float64) for chance in chances]


def test_a_ratio_at_the_edge_of_the_budgets_is_a_bound() -> None:
    """True ratio 16, budgets 1, 4, 16: the curves touch in one point. Leaving out draws without an overlap states a number in about half
    of the simulations, whose interval does not hold 16."""
    rng, budgets = np.random.default_rng(0), [1, 4, 16]
    right, wrong = [], []
    for _ in range(120):
        first, second = curves(rng, budgets, 16, 60, 1)
        right.append(bootstrap_ratio((budgets, first), (budgets, second), draws=500))
        wrong.append(of_overlapping_draws(budgets, first, second))
    assert sum(found.low <= 16 <= found.high for found in right) >= 0.92 * 120
    bounds = [found for found in right if math.isnan(found.value)]
    assert len(bounds) >= 0.92 * 120 and all(found.high == math.inf and 1 < found.low <= 16 and found.overlap < 1 for found in bounds)
    assert all(str(found).startswith("> ") and "% overlap" in str(found) for found in bounds)
    stated = [found for found in wrong if not math.isnan(found.value)]
    assert len(stated) > 40 and sum(found.low <= 16 <= found.high for found in stated) < 0.1 * len(stated)


def test_coverage_of_a_ratio_within_the_budgets() -> None:
    """True ratio 4, budgets 1 to 64, 200 data sets: five standard errors below .95 are .87."""
    rng, budgets = np.random.default_rng(1), [1, 2, 4, 8, 16, 32, 64]
    found = []
    for _ in range(200):
        first, second = curves(rng, budgets, 4, 60, 3)
        found.append(bootstrap_ratio((budgets, first), (budgets, second), draws=500))
    assert 0.91 <= np.mean([one.low <= 4 <= one.high for one in found]) <= 0.99
    assert np.median([one.value for one in found]) == pytest.approx(4, rel=0.05) and all(one.overlap == 1 for one in found)


def test_bounds_in_words() -> None:
    always = (BUDGETS, np.ones((30, 1, 6)))
    never = (BUDGETS, np.zeros((30, 1, 6)))
    assert str(bootstrap_ratio(always, never)) == "> 32.0 (0% overlap)"
    assert str(bootstrap_ratio(never, always)) == "< 0.03 (0% overlap)"
    assert bootstrap_ratio(never, always).high == 1 / 32
    assert str(BudgetRatio(math.nan, 0.0, math.inf, 0.25)) == "unknown (25% overlap)"
    assert str(BudgetRatio(4.21, 3.0, 6.19, 1.0)) == "4.2 [3.0, 6.2]"
    assert str(bootstrap_ratio(always, (BUDGETS, np.full((30, 1, 6), math.nan)))) == "unknown (0% overlap)"
