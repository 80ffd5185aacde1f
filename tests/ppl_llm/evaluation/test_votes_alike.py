"""Votes of records and of the search classes: one treatment of ties, of what is ruled out, and of solutions without an answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.evaluation import Candidate, deepconf_vote
from ppl_llm.evaluation.aggregators import (
    best_of_majority_at_k,
    best_of_n,
    expected_accuracy,
    log_score,
    majority,
    multi_temperature_vote,
    soft_best_of_n,
    weighted_majority,
)
from ppl_llm.evaluation.votes import as_record, from_record
from ppl_llm.inference import BestOfMajority, DiscreteMarginal, Importance, SMCFailed, SoftBestOfN, TwoStageVote
from ppl_llm.programs.deepconf import _votes
from tests.helpers.numbered import Numbered

SCORES = (-math.inf, -80.0, -2.0, -1.0, 0.5, 3.0)
"""Log-odds, many of them equal."""


class Given:
    """Candidate n has the n-th answer, log-odds and temperature."""

    def __init__(self, answers: Sequence[Hashable], log_odds: Sequence[float], temperatures: Sequence[float] = ()) -> None:
        self.answers, self.log_odds, self.temperatures = answers, log_odds, temperatures or [1.0] * len(answers)

    def __call__(self) -> Tensor:
        n = len(self.answers)
        which = pyro.sample("which", Numbered(n))
        pyro.sample("temperature", dist.Delta(torch.tensor(self.temperatures, dtype=torch.float64)[which]))
        log_r = torch.nn.functional.logsigmoid(torch.tensor(self.log_odds, dtype=torch.float64))
        pyro.factor("reward", log_r[which])
        return which

    def answer(self, which: Tensor) -> Hashable:
        return self.answers[int(which)]

    def records(self) -> list[Candidate]:
        """As they come back from a file."""
        rows = zip(self.answers, self.log_odds, self.temperatures, strict=True)
        kept = [Candidate(a, step_log_odds=(max(z, -1e9),), temperature=t, path=str(n)) for n, (a, z, t) in enumerate(rows)]
        return [from_record(as_record(candidate, temperature=True)) for candidate in kept]

    def chosen(self, algorithm: Any) -> list[Hashable]:
        """The answers that a run gives a weight, the best first; none where all are ruled out."""
        try:
            found = algorithm.run()
        except SMCFailed:
            return []
        return [answer for answer in found.marginal(self.answer) if answer is not None]


pools = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=n, max_size=n),
        st.lists(st.sampled_from(SCORES), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.6, 1.0, 1.4]), min_size=n, max_size=n),
    )
)


@settings(max_examples=60, deadline=None)
@given(pools, st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_votes_of_records_are_those_of_runs(pool: Any, k: int, frequency: float) -> None:
    program = Given(*pool)
    n, records = len(program.answers), program.records()
    several = BestOfMajority(program, n, k, frequency, answer=program.answer)
    assert best_of_majority_at_k(records, k, frequency) == program.chosen(several)
    staged = program.chosen(TwoStageVote(program, n, "temperature", answer=program.answer))
    assert multi_temperature_vote(records) == next(iter(staged), None)
    soft = program.chosen(SoftBestOfN(program, n, 2.0))
    assert soft_best_of_n(records, 2.0) == next(iter(soft), None)
    weighted = program.chosen(Importance(program, n))
    assert weighted_majority(records) == next(iter(weighted), None)


def test_what_is_ruled_out_is_never_chosen() -> None:
    """A verifier's log-odds of -inf are -1e9 in records: the first of several such answers is no better than none."""
    ruled_out = [Candidate("x", step_log_odds=(-1e9,)), Candidate("y", step_log_odds=(2.0, -1e9))]
    for vote in (best_of_n, weighted_majority, soft_best_of_n):
        assert vote(ruled_out, aggregation="min") is None
        assert vote([*ruled_out, Candidate("z", step_log_odds=(-700.0,))], aggregation="min") == "z"
    assert best_of_majority_at_k(ruled_out, 2, 0.0, "min") == []
    assert log_score(Candidate("x", step_log_odds=(-1e9, -1e9)), "mean") == -math.inf


def test_products_that_are_too_small_for_floating_point_are_weighed() -> None:
    """Of exp(-900), exp(-800) and exp(-801) the last two are the most: not the answer that comes first."""
    pool = [Candidate(a, step_log_odds=(z / 2, z / 2)) for a, z in (("x", -900.0), ("y", -800.0), ("y", -801.0))]
    assert weighted_majority(pool, "prod") == "y"


def test_large_rewards_under_a_softmax() -> None:
    """exp(800) is no floating-point number; the best has all the weight."""

    def program() -> Tensor:
        which = pyro.sample("which", Numbered(3))
        pyro.factor("reward", torch.tensor([799.0, 800.0, 1.0], dtype=torch.float64)[which])
        return which

    assert SoftBestOfN(program, 3, 2.0).run().weights.tolist() == [0.0, 1.0, 0.0]
    assert SoftBestOfN(program, 3, 0.0).run().weights.tolist() == pytest.approx([1 / 3] * 3)


def test_rounding_breaks_no_tie() -> None:
    """Two of three and four of six are the same share, whose sums of logarithms differ in the last digit; the first answer has it."""
    answers = ["b", "b", "c", *"aaaade"]
    pool = [Candidate(a, temperature=t) for a, t in zip(answers, [1.4] * 3 + [0.6] * 6, strict=True)]
    assert multi_temperature_vote(pool) == "b" and multi_temperature_vote(pool[3:] + pool[:3]) == "a"
    for order in itertools.permutations([("x", 0.1), ("x", 0.2), ("y", 0.3)]):
        assert DiscreteMarginal(order).mode == order[0][0]


def test_nobody_is_sure_at_all() -> None:
    """Confidences of 0: the answer of most of them, in records as in a run, and any confidence at all is more."""
    pool = [Candidate(a, confidence=0.0) for a in ("x", "y", "y")]
    weights = _votes(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)).exp()
    assert deepconf_vote(pool, 1.0) == majority(pool) == "y"
    assert DiscreteMarginal(zip("xyy", weights.tolist(), strict=True)).mode == "y"
    assert deepconf_vote([Candidate("z", confidence=1e-9), *pool], 1.0) == "z"


def test_the_accuracy_of_a_dead_population_is_unknown() -> None:
    assert math.isnan(expected_accuracy([Candidate("x", weight=0.0)], lambda answer: True))
