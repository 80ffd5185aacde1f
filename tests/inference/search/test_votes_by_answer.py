"""Soft best-of-N, best-of-majority and the two-stage vote on four candidates, in closed form; all outcomes by plain counting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.evaluation import Candidate
from ppl_llm.evaluation.aggregators import best_of_majority_at_k, multi_temperature_vote, soft_best_of_n
from ppl_llm.inference import Adaptive, BestOfMajority, BestOfN, GroupAgreement, SelfConsistency, SoftBestOfN, TwoStageVote
from tests.helpers.decision_mutants import WRONG_VOTES
from tests.helpers.numbered import Numbered

ANSWERS = ["a", "b", "b", "c"]
REWARDS = [0.9, 0.5, 0.3, 0.6]
GROUPS = [0, 0, 1, 1]


class Scripted:
    """Particle n has the n-th answer, reward and group; with plates, each problem has them rolled by one more."""

    def __init__(self, plates: int = 0) -> None:
        self.plates = plates

    def __call__(self) -> Tensor:
        if not self.plates:
            return self.program()
        with pyro.plate("problems", self.plates, dim=-1):
            return self.program()

    def program(self) -> Tensor:
        which = pyro.sample("which", Numbered(4))
        pyro.sample("group", dist.Delta(torch.tensor(GROUPS)[which].double()))
        pyro.factor("reward", torch.tensor(REWARDS)[which].log())
        return which


def answer(which: Tensor) -> Hashable:
    return ANSWERS[int(which)]


def masses(posterior: Any) -> dict[Hashable, float]:
    return dict(posterior.marginal(answer).probs)


def test_soft_best_of_n_by_hand() -> None:
    """softmax(.9, .5, .3, .6): b has exp(.5) + exp(.3) = 3.00 and leads a with exp(.9) = 2.46; at 10 a leads."""
    weights = [math.exp(r) for r in REWARDS]
    found = SoftBestOfN(Scripted(), 4, 1.0).run()
    assert masses(found) == pytest.approx(
        {"b": (weights[1] + weights[2]) / sum(weights), "a": weights[0] / sum(weights), "c": weights[3] / sum(weights)}
    )
    assert next(iter(masses(found))) == "b" and next(iter(masses(SoftBestOfN(Scripted(), 4, 10.0).run()))) == "a"
    assert masses(SoftBestOfN(Scripted(), 4, 0.0).run()) == pytest.approx(masses(SelfConsistency(Scripted(), 4).run()))
    assert masses(SoftBestOfN(Scripted(), 4, 1e4).run()) == pytest.approx(masses(BestOfN(Scripted(), 4).run()))
    assert found.scores is not None and found.scores.tolist() == pytest.approx([math.log(r) for r in REWARDS])


def test_soft_best_of_n_gives_nothing_to_what_a_factor_rules_out() -> None:
    def program() -> Tensor:
        which = pyro.sample("which", Numbered(4))
        pyro.factor("wall", torch.where(which == 0, -torch.inf, 0.0))
        return which

    assert masses(SoftBestOfN(program, 4, 1.0).run()) == pytest.approx({"b": 2 / 3, "c": 1 / 3})


@pytest.mark.parametrize(
    ("k", "frequency", "expected"),
    [
        (1, 0.1, {"a": 1.0}),
        (1, 0.5, {"b": 1.0}),
        (2, 0.25, {"a": 0.9 / 1.5, "c": 0.6 / 1.5}),
        (3, 0.25, {"a": 0.45, "c": 0.3, "b": 0.25}),
        (2, 0.9, {"a": 0.9 / 1.5, "c": 0.6 / 1.5}),
    ],
)
def test_best_of_majority_by_hand(k: int, frequency: float, expected: dict[str, float]) -> None:
    """Rewards of the answers .9, .5 and .6; b alone has half of the candidates. Where none is frequent all are taken."""
    found = BestOfMajority(Scripted(), 4, k, frequency, answer=answer).run()
    assert masses(found) == pytest.approx(expected) and list(masses(found)) == list(expected)
    candidates = [Candidate(a, step_log_odds=(math.log(r / (1 - r)),)) for a, r in zip(ANSWERS, REWARDS, strict=True)]
    assert best_of_majority_at_k(candidates, k, frequency) == list(expected)


def test_the_two_stage_vote_by_hand() -> None:
    """a and b tie in the first group, and a came first; b and c in the second. Each has a half of its group."""
    found = TwoStageVote(Scripted(), 4, "group", answer=answer).run()
    assert masses(found) == pytest.approx({"a": 0.5, "b": 0.5})
    pooled = TwoStageVote(Scripted(), 4, "group", answer=answer, equivalent=lambda x, y: {x, y} == {"b", "c"}).run()
    assert masses(pooled) == pytest.approx({"b": 2 / 3, "a": 1 / 3}, abs=1e-12) or masses(pooled)["a"] == pytest.approx(1 / 3)
    single = TwoStageVote(Scripted(), 4, answer=answer).run()
    assert masses(single) == {"b": 1.0}


def two_stage_by_hand(groups: list[list[str]]) -> dict[str, float]:
    """Shares of the winners of each group, by plain counting."""
    shares: dict[str, float] = {}
    for own in groups:
        winner = max(own, key=lambda a: (own.count(a), -own.index(a)))
        shares[winner] = shares.get(winner, 0.0) + own.count(winner) / len(own)
    total = sum(shares.values())
    return {a: s / total for a, s in shares.items()}


def two_stage_error() -> float:
    """Over all 3^6 outcomes of two groups of three: largest difference of a share from plain counting."""
    error = 0.0
    for outcome in itertools.product("abc", repeat=6):
        given, groups = list(outcome), [float(n % 2) for n in range(6)]
        weights = TwoStageVote.log_weights(given, groups).exp()
        total = float(weights.sum())
        found: dict[str, float] = {}
        for each, weight in zip(given, weights.tolist(), strict=True):
            found[each] = found.get(each, 0.0) + weight / total
        expected = two_stage_by_hand([given[0::2], given[1::2]])
        error = max(error, *(abs(found.get(a, 0.0) - expected.get(a, 0.0)) for a in "abc"))
        pool = [Candidate(a, temperature=g) for a, g in zip(given, groups, strict=True)]
        error = max(error, max(expected.values()) - expected.get(str(multi_temperature_vote(pool)), 0.0))
    return error


def test_the_two_stage_vote_counts_shares() -> None:
    assert two_stage_error() < 1e-12


def test_rejects_one_vote_for_each_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoStageVote, "log_weights", staticmethod(WRONG_VOTES["plain majority"]))
    assert two_stage_error() > 0.1


def test_rejects_rewards_as_log_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """At beta = 1 it gives a .9 against b's .5 + .3."""
    for target, wrong in WRONG_VOTES["powers"].items():
        monkeypatch.setattr(target, wrong)
    assert next(iter(masses(SoftBestOfN(Scripted(), 4, 1.0).run()))) == "a"


def test_rejects_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.inference.search.best_of_majority.best_of_frequent", WRONG_VOTES["best of all"])
    assert masses(BestOfMajority(Scripted(), 4, 1, 0.5, answer=answer).run()) != {"b": 1.0}


@pytest.mark.parametrize("kind", ["soft", "majority", "two stages"])
def test_every_problem_of_a_plate_has_its_own_vote(kind: str) -> None:
    """Rolled candidates give the same votes up to ties."""
    make: dict[str, Callable[..., Any]] = {
        "soft": lambda model, n, **more: SoftBestOfN(model, n, 2.0, **more),
        "majority": lambda model, n, **more: BestOfMajority(model, n, 2, 0.2, answer=answer, **more),
        "two stages": lambda model, n, **more: TwoStageVote(model, n, answer=answer, **more),
    }
    alone = masses(make[kind](Scripted(), 4).run())
    found = make[kind](Scripted(3), 4, max_plate_nesting=1).run().marginal(answer)
    assert len(found) == 3 and all(dict(each.probs) == pytest.approx(alone) for each in found)


# Early exit


def agreeing(chances: list[list[float]]) -> Callable[[], Tensor]:
    """Two groups that take turns, each with its own chances of three answers."""

    def program() -> Tensor:
        group = pyro.sample("temperature", Numbered(2))
        return pyro.sample("answer", dist.Categorical(torch.tensor(chances)[group]))

    return program


@pytest.mark.parametrize(
    ("votes", "stops"),
    [
        ([[0, 0], [0, 0], [0, 0]], True),  # three of each without dissent: 1 - 2^-4
        ([[0, 0], [0, 0]], False),  # two are .875
        ([[0, 1], [0, 1], [0, 1]], False),  # settled within, not across
        ([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]], False),  # 4 against 1 within the first: .8906
        ([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], True),  # 5 against 1: .9375
    ],
)
def test_it_stops_where_the_vote_is_settled_within_and_across(votes: list[list[int]], stops: bool) -> None:
    """Batches of one candidate of each group, in a given order."""
    order = iter([answer for batch in votes for answer in batch])

    def program() -> Tensor:
        group = pyro.sample("temperature", Numbered(2))
        script = torch.tensor([next(order) for _ in range(2)])
        pyro.sample("answer", dist.Delta(script.double()))
        return script if group.dim() else script[0]

    algorithm = TwoStageVote(program, 2, "temperature", answer=int)
    posterior = Adaptive(algorithm, GroupAgreement(0.9), 2 * len(votes), answer=int).run()
    assert posterior.stopped is stops and posterior.num_drawn == 2 * len(votes)
    by_hand = two_stage_by_hand([[str(batch[0]) for batch in votes], [str(batch[1]) for batch in votes]])
    assert {str(a): p for a, p in posterior.marginal(int).probs.items()} == pytest.approx(by_hand)


def test_agreement_is_for_groups() -> None:
    with pytest.raises(ValueError, match=r"GroupAgreement\(0.9\) compares groups of candidates; take TwoStageVote\(model, ..., site=...\)"):
        Adaptive(SelfConsistency(Scripted(), 4), GroupAgreement())
    with pytest.raises(ValueError, match="no latent site 'temperature' to group candidates by; its sites are which, group"):
        TwoStageVote(Scripted(), 4, "temperature", answer=answer).run()
    with pytest.raises(TypeError, match=r"has no answers\(\): give answer=function"):
        TwoStageVote(Scripted(), 4).run()
    with pytest.raises(ValueError, match="beta must be a finite number, not negative, got -1"):
        SoftBestOfN(Scripted(), 4, -1.0)
    with pytest.raises(ValueError, match=r"frequency must lie in \[0, 1\], got 2"):
        BestOfMajority(Scripted(), 4, 1, 2)


def test_votes_of_recorded_candidates_by_hand() -> None:
    pool = [Candidate(a, step_log_odds=(math.log(r / (1 - r)),)) for a, r in zip(ANSWERS, REWARDS, strict=True)]
    assert soft_best_of_n(pool, 1.0) == "b" and soft_best_of_n(pool, 10.0) == "a" and soft_best_of_n(pool, 0.0) == "b"
    assert soft_best_of_n(pool, 1e6) == "a" and soft_best_of_n([], 1.0) is None
    assert soft_best_of_n([Candidate(None, step_log_odds=(9.0,)), *pool[1:2]], 1.0) == "b"
    with pytest.raises(ValueError, match="beta must be a finite number"):
        soft_best_of_n(pool, -1.0)
