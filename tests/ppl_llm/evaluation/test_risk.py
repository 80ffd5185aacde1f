"""Risk against coverage, and counts of repeated samples, against hand-computed values and plain enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_llm.evaluation.risk import all_at_k, pass_until, risk_coverage, saturation


def test_a_curve_by_hand():
    found = risk_coverage([0.9, 0.4, 0.6, 0.4], [True, False, False, True])
    assert found.coverage.tolist() == [0.25, 0.5, 1.0]
    assert found.risk.tolist() == [0.0, 0.5, 0.5]
    assert found.area == pytest.approx((0 + 1 / 2 + 1.5 / 3 + 2 / 4) / 4, abs=1e-15)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_the_area_is_the_mean_over_the_orders_of_ties(answers: list[tuple[int, bool]]):
    areas = []
    for order in itertools.permutations(range(len(answers))):
        if all(answers[a][0] >= answers[b][0] for a, b in itertools.pairwise(order)):
            wrong = [0 if answers[n][1] else 1 for n in order]
            areas.append(sum(Fraction(sum(wrong[: k + 1]), k + 1) for k in range(len(wrong))) / len(wrong))
    exact = float(sum(areas) / len(areas))
    found = risk_coverage([float(sure) for sure, _ in answers], [right for _, right in answers])
    assert found.area == pytest.approx(exact, abs=1e-12)
    assert found.coverage[-1] == 1.0
    assert found.risk[-1] == pytest.approx(np.mean([not right for _, right in answers]), abs=1e-15)


def test_no_information_gives_the_error_rate():
    assert risk_coverage([0.5] * 10, [True] * 7 + [False] * 3).area == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [([], [], "no answer"), ([0.1], [True, False], "one length"), ([0.3, math.nan], [True, True], "confidence 1 is nan")],
)
def test_what_has_no_curve(confidence: list[float], correct: list[bool], message: str):
    with pytest.raises(ValueError, match=message):
        risk_coverage(confidence, correct)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (5, 3), (6, 6), (7, 2)])
def test_all_at_k_counts_subsets(n: int, c: int):
    right = [i < c for i in range(n)]
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(right, k))
        assert all_at_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("r", [2, 3, 5])
def test_pass_until_is_unbiased_and_the_plain_share_is_not(p: float, r: int):
    """Over the negative binomial distribution of K, cut where its tail is below 1e-14."""
    chances = [(k, math.comb(k - 1, r - 1) * p**r * (1 - p) ** (k - r)) for k in range(r, 400)]
    assert sum(mass * pass_until(r, k) for k, mass in chances) == pytest.approx(p, abs=1e-12)
    assert sum(mass * r / k for k, mass in chances) > p + 0.01


@pytest.mark.parametrize(("ceiling", "chance", "tolerance"), [(0.8, 0.3, 0.01), (1.0, 0.05, 0.001), (0.5, 0.99, 0.1), (0.9, 1.0, 0.2)])
def test_saturation_is_the_first_sample_that_gains_too_little(ceiling: float, chance: float, tolerance: float):
    gains = (n for n in itertools.count() if ceiling * chance * (1 - chance) ** n <= tolerance)
    assert saturation(ceiling, chance, tolerance) == next(gains)
    assert saturation(0.1, 0.1, 0.5) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: all_at_k(3, 1, 4), "k must lie in 1 .. 3"),
        (lambda: all_at_k(3, 4, 2), "num_correct must lie in 0 .. 3"),
        (lambda: pass_until(1, 5), "at least 2 correct"),
        (lambda: pass_until(3, 2), "at least 3"),
        (lambda: saturation(0.0, 0.5, 0.1), "ceiling must lie in"),
        (lambda: saturation(0.5, 1.5, 0.1), "chance must lie in"),
        (lambda: saturation(0.5, 0.5, 0.0), "tolerance must be positive"),
    ],
)
def test_arguments_that_make_no_sense(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("ceiling", "chance"), [(1.0, 0.5), (1.0, 0.25), (0.8, 0.2), (0.3, 0.07)])
def test_saturation_where_the_gain_is_the_tolerance_exactly(ceiling: float, chance: float) -> None:
    """The first N with F p (1 - p)^N <= tolerance is N itself for F p (1 - p)^N, however that is rounded."""
    for number in range(60):
        assert saturation(ceiling, chance, ceiling * chance * (1 - chance) ** number) == number
