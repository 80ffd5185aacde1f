"""Votes by hand, their invariance, and their ties."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.evaluation import Candidate
from ppl_llm.evaluation.aggregators import (
    best_of_majority,
    best_of_majority_at_k,
    best_of_n,
    expected_accuracy,
    first_finish,
    log_score,
    majority,
    multi_temperature_vote,
    posterior_majority,
    weighted_majority,
)
from ppl_llm.evaluation.confidence_votes import borda_vote, self_certainty
from ppl_llm.evaluation.rpc import fit_two_weibulls, keep, rpc
from tests.helpers.wrong_statistics import frequency_multiplied, mean_log_prob


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def candidate(answer: str | None, *scores: float, **more: Any) -> Candidate:
    return Candidate(answer, step_log_odds=tuple(map(logit, scores)), **more)


POOL = [
    candidate("8", 0.9, 0.2, weight=0.1, tokens=9),
    candidate("7", 0.5, 0.8, weight=0.5, tokens=5),
    candidate("8", 0.3, 0.3, weight=0.1, tokens=4, finished=False),
    candidate(None, 0.99, 0.99, weight=0.2, tokens=1),
    candidate("9", 0.9, 0.7, weight=0.1, tokens=7),
]


def test_scores() -> None:
    assert math.exp(log_score(POOL[0], "last")) == pytest.approx(0.2)
    assert math.exp(log_score(POOL[0], "prod")) == pytest.approx(0.18)
    assert math.exp(log_score(POOL[0], "min")) == pytest.approx(0.2)
    assert math.exp(log_score(POOL[0], "mean")) == pytest.approx(0.55)
    assert log_score(Candidate("1", step_log_odds=(800.0, -800.0)), "prod") == pytest.approx(-800.0)
    assert math.exp(log_score(POOL[0], "max")) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="unknown aggregation 'most'"):
        log_score(POOL[0], "most")
    with pytest.raises(ValueError, match="no step scores"):
        log_score(Candidate("1"))


def test_votes_by_hand() -> None:
    assert majority(POOL) == "8"  # 2 of 5; the one without an answer has no vote
    assert posterior_majority(POOL) == "7"
    assert weighted_majority(POOL, "last") == "7"  # 0.8 against 0.7 and 0.2 + 0.3
    assert weighted_majority(POOL, "prod") == "9"  # 0.63 against 0.4 and 0.18 + 0.09
    assert best_of_n(POOL, "last") == "7" and best_of_n(POOL, "mean") == "9"
    assert best_of_majority(POOL, 0.4) == "8" and best_of_majority(POOL, 0.2) == "7" and best_of_majority(POOL, 0.9) == "7"
    assert first_finish(POOL) == "7"  # the shorter "8" had not finished, the shortest of all has no answer
    assert expected_accuracy(POOL, lambda answer: answer == "8") == pytest.approx(0.2)
    hot = [replace(c, temperature=1.2) for c in POOL[:3]]
    assert multi_temperature_vote([*hot, candidate("9", 0.5), candidate("9", 0.5)]) == "9"  # 2 of 2 against 2 of 3
    with pytest.raises(ValueError, match=r"frequency must lie in \[0, 1\], got 2"):
        best_of_majority(POOL, 2)


def test_ties_go_to_the_first_and_nothing_gives_nothing() -> None:
    assert majority([candidate("b"), candidate("a"), candidate("a"), candidate("b")]) == "b"
    assert best_of_n([candidate("b", 0.5), candidate("a", 0.5)]) == "b"
    for vote in (majority, posterior_majority, weighted_majority, best_of_n, best_of_majority, first_finish, multi_temperature_vote):
        assert vote([candidate(None, 0.5)]) is None and vote([]) is None


answers = st.lists(
    st.builds(
        lambda a, z, w, n, p: Candidate(a, w, tuple(z), n, p, path=f"{a}{n}{z}"),
        st.sampled_from(["1", "2", "3", None]),
        st.lists(st.floats(-5, 5), min_size=1, max_size=3),
        st.floats(0.1, 1),
        st.integers(1, 10**6),
        st.floats(-30, -1),
    ),
    min_size=1,
    max_size=12,
    unique_by=(lambda c: c.tokens, lambda c: c.step_log_odds, lambda c: c.log_prob, lambda c: c.weight),
)


@settings(max_examples=25)
@given(pool=answers, seed=st.integers(0, 99))
def test_order_does_not_matter_but_for_ties(pool: list[Candidate], seed: int) -> None:
    mixed = random.Random(seed).sample(pool, len(pool))
    for vote in (best_of_n, first_finish):
        assert vote(pool) == vote(mixed)
    for vote in (posterior_majority, weighted_majority, rpc):
        assert vote(pool) == vote(mixed) or pool != sorted(pool, key=lambda c: str(c.answer))
    counts = {a: sum(c.answer == a for c in pool) for a in ("1", "2", "3")}
    assert counts.get(majority(mixed), 0) == max(counts.values())


def test_rpc_counts_distinct_paths_and_prunes_the_improbable() -> None:
    probable = [Candidate("1", log_prob=-10.0, path="a")] * 2 + [Candidate("1", log_prob=-10.5, path="b")]
    # By probability: answer 1 has exp(-10) + exp(-10.5) = 1.61 exp(-10), answer 2 exp(-9.5) = 1.65 exp(-10); repeats do not count.
    assert rpc([*probable, Candidate("2", log_prob=-9.5, path="c")]) == "2"
    assert rpc([*probable, Candidate("2", log_prob=-9.6, path="c")]) == "1"
    with pytest.raises(ValueError, match="log_prob"):
        rpc([Candidate("1")])


def long_solutions(seed: int) -> list[Candidate]:
    """32 solutions of 150 to 250 tokens, 24 of them with one answer, 8 with the other; no answer is more probable by the token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(150, 251, size=32)
    sums = [float(rng.normal(-0.35, 0.35, size=n).sum()) for n in tokens]
    pairs = enumerate(zip(sums, tokens.tolist(), strict=True))
    return [Candidate("24" if i < 24 else "8", log_prob=total, tokens=n, path=str(i)) for i, (total, n) in pairs]


def test_rpc_of_the_paper_is_one_path_and_that_of_the_released_code_a_vote() -> None:
    """Sums of hundreds of log-probabilities differ by tens of nats: the vote is the answer of one path, and loses a majority of 24 to 8
    in about a quarter of the draws. exp of the mean does not."""
    pools = [long_solutions(seed) for seed in range(100)]
    top = [max(pool, key=lambda c: float(c.log_prob or 0)).answer for pool in pools]
    paper = [rpc(pool, "sum") for pool in pools]
    assert sum(a == b for a, b in zip(paper, top, strict=True)) >= 90
    assert 10 <= paper.count("8") <= 40
    assert [rpc(pool, "mean") for pool in pools].count("8") <= 2


def test_rpc_probabilities_by_hand() -> None:
    """By sums, a has exp(-10) against exp(-9) + exp(-12) for b; by means, exp(-1) against exp(-4.5) + exp(-6)."""
    pool = [Candidate("a", log_prob=-10.0, tokens=10, path="1"), Candidate("b", log_prob=-9.0, tokens=2, path="2")]
    pool.append(Candidate("b", log_prob=-12.0, tokens=2, path="3"))
    assert rpc(pool) == rpc(pool, "sum") == "b" and rpc(pool, "mean") == "a"
    with pytest.raises(ValueError, match="unknown probability 'means'; did you mean 'mean'"):
        rpc(pool, "means")
    with pytest.raises(ValueError, match="number of tokens"):
        rpc([Candidate("1", log_prob=-1.0, path="a")], "mean")


def test_best_of_majority_submits_k_answers() -> None:
    """Frequencies 4, 3, 2 and 1 of 10, rewards .2, .6, .4 and .9."""
    pool = [candidate("a", 0.1)] * 3 + [candidate("a", 0.2)] + [candidate("b", 0.6)] * 3 + [candidate("c", 0.4)] * 2 + [candidate("d", 0.9)]
    assert [best_of_majority_at_k(pool, k, 0.2) for k in (1, 2, 3, 4)] == [["b"], ["b", "c"], ["b", "c", "a"], ["b", "c", "a"]]
    assert best_of_majority_at_k(pool, 2, 0.1) == ["d", "b"] and best_of_majority_at_k(pool, 2, 0.4) == ["a"]
    assert best_of_majority_at_k(pool, 2, 0.5) == ["d", "b"]  # none is that frequent
    assert best_of_majority(pool, 0.2) == "b" and best_of_majority_at_k([], 3) == []
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        best_of_majority_at_k(pool, 0)


def test_seven_of_25_are_a_frequency_of_28_percent() -> None:
    pool = [candidate("a", 0.1)] * 7 + [candidate(str(i), 0.9) for i in range(18)]
    assert best_of_majority_at_k(pool, 2, 0.28) == ["a"]
    assert frequency_multiplied(pool, 0.28) == set()


def test_self_certainty_by_hand() -> None:
    """V = 2: -1/4 (log(2 .5) + log(2 .5) + log(2 .9) + log(2 .1)); it is the divergence from the uniform distribution."""
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    expected = -(math.log(1.8) + math.log(0.2)) / 4
    assert self_certainty(np.log(p)) == pytest.approx(expected)
    assert self_certainty(np.log(np.full((3, 7), 1 / 7))) == pytest.approx(0.0, abs=1e-12)
    q = np.random.default_rng(0).dirichlet(np.ones(5), size=4)
    assert self_certainty(np.log(q)) == pytest.approx(float(np.mean([np.sum(0.2 * np.log(0.2 / row)) for row in q])))
    # The mean log-probability of the tokens taken depends on which they were, self-certainty does not.
    assert mean_log_prob(np.log(p), [0, 0]) != mean_log_prob(np.log(p), [0, 1]) and mean_log_prob(np.log(p), [0, 0]) < 0 < expected
    with pytest.raises(ValueError, match="before top-k or top-p"):
        self_certainty([[0.0, -math.inf]])
    with pytest.raises(ValueError, match=r"shape \[n, V\]"):
        self_certainty([])


def test_borda_votes_by_hand() -> None:
    """Ranks 1 to 4: a, b, b, a. Votes 4 + 1 against 3 + 2; by the square 17 against 13, by the square root 3 against 3.15."""
    pool = [Candidate(a, confidence=c) for a, c in (("b", 2.0), ("a", 3.0), ("b", 1.0), ("a", 0.5))]
    assert borda_vote(pool, 2.0) == "a" and borda_vote(pool, 0.5) == "b" and borda_vote(pool) == "b"  # a tie goes to the first
    assert borda_vote([*pool, Candidate(None, confidence=9.0)], 2.0) == "a" and borda_vote([]) is None
    # Equally sure ones share their votes, 1 + 2 + 3: the order does not decide.
    even = [Candidate(a, confidence=1.0) for a in ("b", "a", "a")]
    assert borda_vote(even) == borda_vote(even[::-1]) == "a"
    assert borda_vote([Candidate("b", confidence=2.0), *[Candidate("a", confidence=1.0)] * 2], 3.0) == "b"
    with pytest.raises(ValueError, match="confidence; record it"):
        borda_vote([Candidate("1")])
    with pytest.raises(ValueError, match="power must not be negative, got -1"):
        borda_vote(pool, -1)


def test_the_mixture_separates_two_populations() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.weibull(2.0, 300) * 0.01, rng.weibull(5.0, 300) * 1.0
    p = np.concatenate([low, high])
    (w0, k0, s0), (_, k1, s1) = sorted(fit_two_weibulls(p), key=lambda c: c[2])
    assert w0 == pytest.approx(0.5, abs=0.05) and s0 == pytest.approx(0.01, rel=0.15) and s1 == pytest.approx(1.0, rel=0.1)
    assert k0 == pytest.approx(2.0, rel=0.2) and k1 == pytest.approx(5.0, rel=0.2)
    kept = keep(np.log(p), np.log(p))
    assert kept[300:].mean() > 0.97 and kept[:300].mean() < 0.03
