"""Tables, curves and ratios from records made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl_llm.evaluation.intervals import proportion
from ppl_llm.evaluation.results import Results
from tests.helpers.runs import results


def test_accuracy_and_differences() -> None:
    found = results()
    assert found.methods == ["smc", "importance"] and found.budgets("smc") == [4, 8] and found.seeds == [0, 1]
    assert found.table("smc", 4).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert np.isnan(found.table("smc", 16)).all()
    accuracy = found.accuracy("smc", 4)
    assert accuracy.value == 0.75 and accuracy == proportion(found.table("smc", 4))
    assert found.accuracy("smc", 8)[0] == 1.0 > found.accuracy("smc", 8).low and found.accuracy("importance", 4).high > 0.0
    assert found.accuracy("smc", 4, ["p"]).value == 0.5
    paired = found.difference(("smc", 8), ("importance", 4))
    # Two problems alike leave a share of 1 - sqrt(0.025) of all problems open, each of which may be at the other end, -1.
    assert (paired.value, paired.low, paired.high) == pytest.approx((1.0, 1.0 - 2 * (1 - math.sqrt(0.025)), 1.0))
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
