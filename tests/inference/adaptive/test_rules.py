"""Each rule in closed form."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppl_llm.inference import BetaMajority, Pandora, SameAnswers, Share
from ppl_llm.inference.posterior.votes import Votes


def after(answers: Sequence[Hashable], log_weights: Sequence[float] | None = None, rewards: Sequence[float] = ()) -> Any:
    """What a rule sees of a posterior."""
    votes = Votes(tuple({answer: 1.0} for answer in answers), tuple(log_weights or [0.0] * len(answers)))
    return SimpleNamespace(votes=votes, rewards=list(rewards))


def beta_tail(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1), by Simpson's rule, which is exact up to its grid for a polynomial."""
    p = torch.linspace(0, 1, 20001, dtype=torch.float64)
    density = p**first * (1 - p) ** second
    weights = torch.ones_like(p)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    upper = weights[10000:].clone()
    upper[0] = 1.0
    return float((density[10000:] * upper).sum() / (density * weights).sum())


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (4, 0), (3, 1), (5, 5), (9, 2), (40, 23)])
def test_beta_majority_is_the_incomplete_beta_function(first: int, second: int) -> None:
    assert BetaMajority.probability(first, second) == pytest.approx(beta_tail(first, second), abs=1e-10)


def test_beta_majority_by_hand() -> None:
    """1 - 2^-(n + 1) for n votes without dissent, of which 4 reach 0.95; against a dissenting vote it takes 6. 3 to 1 is 1 - 6/32."""
    assert BetaMajority.probability(4, 0) == 1 - 2**-5 and BetaMajority.probability(3, 1) == 1 - 6 / 32
    rule = BetaMajority(0.95)
    assert [rule(after("a" * n)) for n in range(6)] == [False, False, False, False, True, True]
    assert next(n for n in range(1, 12) if rule(after("b" + "a" * n))) == 6
    assert rule(after("aaaa")) and rule(after([None, "a", "a", "a", "a"])) and not rule(after([None] * 9))
    assert BetaMajority.probability(4000, 3900) == pytest.approx(0.8697, abs=1e-3)  # no overflow: normal quantile of 100 / sqrt(7900)


def test_weighted_counts_are_rounded_against_a_stop() -> None:
    """Votes with the weights 1, 1, 1, 1, 1/2: 20.25 / 4.25 = 4.76 effective ones, of which the leader has 4.24 and the other 0.53."""
    votes = after("aaaab", [0.0] * 4 + [math.log(0.5)]).votes
    assert votes.total == pytest.approx(4.5**2 / 4.25)
    assert list(votes.counts) == ["a", "b"] and votes.counts["a"] == pytest.approx(votes.total * 4 / 4.5)
    assert not BetaMajority(0.9)(after("aaaab", [0.0] * 4 + [math.log(0.5)]))  # 4 to 1 is 0.891
    assert BetaMajority(0.89)(after("aaaab", [0.0] * 4 + [math.log(0.5)]))


def test_same_answers() -> None:
    rule = SameAnswers(3)
    assert [rule(after(answers)) for answers in ("aa", "aaa", "baaa", "aaab", "abab")] == [False, True, True, False, False]
    assert not rule(after([None] * 3)) and not rule(after(["a", "a", None, "a"]))
    assert rule(after(["a", "b", "a", "a"], [0.0, -math.inf, 0.0, -3.0]))  # what has no weight has no vote


def test_share() -> None:
    rule = Share(0.75)
    assert [rule(after(answers)) for answers in ("a", "aa", "ab", "aaab", "aabb")] == [False, True, False, True, False]
    assert not rule(after(["a", "a", None])) and not rule(after([]))
    assert not rule(after("ab", [0.0, -20.0]))  # one effective vote


def test_votes_of_filters_are_divided() -> None:
    votes = Votes(({"a": 0.75, "b": 0.25}, {"a": 0.5, None: 0.5}, {"b": 0.9, "a": 0.1}), (0.0, 0.0, 0.0))
    assert votes.total == pytest.approx(3.0) and votes.counts == pytest.approx({"a": 1.35, "b": 1.15})
    assert votes.row == ["a", "a", "b"]
    merged = votes.pooled(lambda a, b: True)
    assert merged.counts == pytest.approx({"a": 2.5}) and merged.row[0] == "a"


@given(
    rewards=st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=12),
    cost=st.sampled_from([0.001, 0.01, 0.1, 0.4]),
    prior=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_pandoras_threshold(rewards: list[float], cost: float, prior: float) -> None:
    """It solves E[(r - tau)^+] = cost, and the best reward reaches it exactly where the expected gain is at most the cost."""
    rule = Pandora(cost, prior)
    tau = rule.threshold(rewards)
    assert tau < 1.0
    if tau >= 0:
        # the expectation under the predictive distribution: n atoms, and a uniform part by the midpoint rule
        grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        uniform = float((grid - tau).clamp(min=0).mean())
        expected = (sum(max(0.0, r - tau) for r in rewards) + prior * uniform) / (len(rewards) + prior)
        assert expected == pytest.approx(cost, abs=1e-7)
    if abs(max(rewards) - tau) > 1e-9:
        assert rule(after([], rewards=rewards)) == (max(rewards) >= tau)


def test_pandora_by_hand() -> None:
    """a (1 - M)^2 / (2 (n + a)): at the best reward 1/2 a cost of 1/100 stops after 12 samples, at 9/10 after the first."""
    rule = Pandora(0.01)
    assert next(n for n in range(1, 20) if rule(after([], rewards=[0.5] * n))) == 12
    assert rule(after([], rewards=[0.9])) and not rule(after([], rewards=[]))
    with pytest.raises(ValueError, match=r"Pandora takes rewards in \[0, 1\], and a candidate has 3.5: .* preset exact or twisted"):
        rule(after([], rewards=[0.1, 3.5]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaMajority(0.5), "confidence must be a number between 0.5 and 1, got 0.5"),
        (lambda: BetaMajority("0.9"), "confidence must be a number, got '0.9'"),  # type: ignore[arg-type]
        (lambda: SameAnswers(1), "window must be an integer of at least 2, got 1"),
        (lambda: Share(1.0), "share must be a number between 0 and 1, got 1.0"),
        (lambda: Pandora(0.0), "cost must be a number between 0 and 1, got 0.0"),
        (lambda: Pandora(0.1, prior=0.0), "prior must be a finite number above 0, got 0.0"),
    ],
)
def test_bad_numbers(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_say_what_they_are() -> None:
    assert list(map(repr, [BetaMajority(), SameAnswers(), Share(), Pandora(), Pandora(0.1, 2.0)])) == [
        "BetaMajority(0.95)",
        "SameAnswers(5)",
        "Share(0.75)",
        "Pandora(0.01)",
        "Pandora(0.1, prior=2)",
    ]
