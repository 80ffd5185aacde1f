"""Figures of merit against definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.evaluation import Candidate, pass_at_k
from ppl_llm.evaluation.aggregators import majority
from ppl_llm.evaluation.metrics import (
    auroc,
    best_of_k_chances,
    brier,
    calibration_error,
    false_positive_rate,
    fit_coverage,
    majority_at_k,
    reliability,
)


@given(n=st.integers(1, 7), data=st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([i < correct for i in range(n)], k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_bad_counts() -> None:
    with pytest.raises(ValueError, match=r"k must lie in 1 \.\. 4"):
        pass_at_k(4, 2, 5)
    with pytest.raises(ValueError, match="num_correct"):
        pass_at_k(4, 5, 1)


def one(answer: object) -> bool:
    return answer == "1"


def test_majority_at_k() -> None:
    pool = [Candidate("1")] * 3 + [Candidate("2")] * 2
    assert majority_at_k(pool, one, 5) == 1.0 and majority_at_k(pool, lambda a: a == "2", 5) == 0.0
    assert majority_at_k(pool, lambda a: a == "2", 1, draws=4000) == pytest.approx(0.4, abs=0.04)  # five standard errors
    assert majority_at_k(pool, one, 2) == majority_at_k(pool, one, 2)
    assert majority_at_k([Candidate("2"), Candidate("1")], one, 2) == 0.5  # a tie, in random order
    assert majority_at_k([Candidate(None), Candidate(None), Candidate("1")], one, 3) == 1.0  # no answer, no vote
    assert majority_at_k([Candidate(None)], one, 1) == 0.0
    with pytest.raises(ValueError, match=r"k must lie in 1 \.\. 1"):
        majority_at_k([Candidate("1")], one, 2)


@settings(max_examples=15)
@given(letters=st.lists(st.sampled_from(["1", "2", "3", None]), min_size=2, max_size=6), data=st.data())
def test_majority_at_k_is_the_mean_over_ordered_subsets(letters: list[str | None], data: st.DataObject) -> None:
    """Within five standard errors of 3000 draws: at most 0.046."""
    k = data.draw(st.integers(1, len(letters)))
    pool = [Candidate(letter) for letter in letters]
    hits = [majority(order) == "1" for order in itertools.permutations(pool, k)]
    assert majority_at_k(pool, one, k, draws=3000) == pytest.approx(float(np.mean(hits)), abs=0.046)


@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=7), data=st.data())
def test_chances_of_the_best_of_k(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    picked = [max(subset, key=lambda i: (scores[i], -i)) for subset in itertools.combinations(range(len(scores)), k)]
    assert best_of_k_chances(scores, k) == pytest.approx([picked.count(i) / len(picked) for i in range(len(scores))])
    with pytest.raises(ValueError, match="k must lie in"):
        best_of_k_chances(scores, len(scores) + 1)


@given(scale=st.floats(0.1, 5), exponent=st.floats(0.1, 1))
def test_coverage_power_law_is_recovered(scale: float, exponent: float) -> None:
    ks = [1, 2, 4, 8, 16]
    power_law = fit_coverage([*ks, 10**9], [*(math.exp(-scale * k**-exponent) for k in ks), 1.0])
    assert power_law.scale == pytest.approx(scale, rel=1e-6) and power_law.exponent == pytest.approx(exponent, rel=1e-6)
    assert float(power_law(4)) == pytest.approx(math.exp(-scale * 4**-exponent))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    good, bad = [s for s, y in rows if y], [s for s, y in rows if not y]
    value = auroc([s for s, _ in rows], [y for _, y in rows])
    if not good or not bad:
        assert math.isnan(value)
        return
    assert value == pytest.approx(sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad)))


def test_calibration_by_hand() -> None:
    p, y = [0.05, 0.15, 0.95, 1.0], [0, 1, 1, 1]
    bins = reliability(p, y)
    assert [b.size for b in bins] == [1, 1, 2] and bins[2].confidence == pytest.approx(0.975) and bins[2].frequency == 1.0
    assert calibration_error(bins) == pytest.approx((0.05 + 0.85 + 2 * 0.025) / 4)
    assert brier(p, y) == pytest.approx((0.0025 + 0.7225 + 0.0025) / 4)
    assert false_positive_rate([0.9, 0.8, 0.2], [True, False, False], 0.5) == 0.5
    assert math.isnan(false_positive_rate([0.1], [True], 0.5))
