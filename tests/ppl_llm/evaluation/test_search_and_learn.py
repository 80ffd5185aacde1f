"""Votes against the definitions of search-and-learn, written down again here, on ties, duplicates and in every order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.evaluation import Candidate
from ppl_llm.evaluation.aggregators import (
    best_of_majority,
    best_of_n,
    expected_accuracy,
    first_finish,
    log_score,
    majority,
    multi_temperature_vote,
    posterior_majority,
    weighted_majority,
)
from ppl_llm.evaluation.rpc import rpc

Vote = Callable[[Sequence[Candidate]], object]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def naive(answers: Sequence[str], scores: Sequence[float]) -> str:
    """The answer of the completion with the top score."""
    top = 0
    for i, score in enumerate(scores):
        if score > scores[top]:
            top = i
    return answers[top]


def weighted(answers: Sequence[str], scores: Sequence[float]) -> str:
    """The answer with the largest sum of the scores of its completions, every completion counted; ties to the first."""
    groups: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        groups.setdefault(answer, []).append(score)
    return max(groups, key=lambda answer: math.fsum(groups[answer]))


def most_frequent(answers: Sequence[str], scores: Sequence[float]) -> str:
    """The same with scores of one."""
    return weighted(answers, [1.0] * len(answers))


PAIRS: list[tuple[Vote, Callable[[Sequence[str], Sequence[float]], str]]] = [
    (best_of_n, naive),
    (weighted_majority, weighted),
    (majority, most_frequent),
]

# Few answers, few scores: ties and duplicates are the rule.
completions = st.lists(st.tuples(st.sampled_from("123"), st.sampled_from([-1.0, 0.0, 2.0])), min_size=1, max_size=7)


def pool(rows: Sequence[tuple[str, float]]) -> list[Candidate]:
    """With steps before the last that would turn the order round: it takes the last score whatever else is asked for."""
    return [Candidate(answer, step_log_odds=(-4 * z, z)) for answer, z in rows]


def disagreements(pairs: Sequence[tuple[Vote, Callable[[Sequence[str], Sequence[float]], str]]], rows: Sequence[tuple[str, float]]) -> int:
    answers, scores = [a for a, _ in rows], [sigmoid(z) for _, z in rows]
    return sum(ours(pool(rows)) != theirs(answers, scores) for ours, theirs in pairs)


@settings(max_examples=300)
@given(rows=completions)
def test_the_definitions_of_search_and_learn(rows: list[tuple[str, float]]) -> None:
    assert disagreements(PAIRS, rows) == 0


def ties_to_the_last(candidates: Sequence[Candidate]) -> object:
    return majority(list(reversed(candidates)))


def without_duplicates(candidates: Sequence[Candidate]) -> object:
    return weighted_majority(list(dict.fromkeys(candidates)))


def product_of_scores(candidates: Sequence[Candidate]) -> object:
    return best_of_n(candidates, "prod")


@pytest.mark.parametrize(
    ("broken", "definition"), [(ties_to_the_last, most_frequent), (without_duplicates, weighted), (product_of_scores, naive)]
)
def test_other_rules_for_ties_and_duplicates_are_noticed(broken: Vote, definition: Callable[..., str]) -> None:
    rows = [row for length in (2, 3) for row in itertools.product([("1", 0.0), ("2", 0.0), ("2", 2.0)], repeat=length)]
    assert sum(disagreements([(broken, definition)], row) for row in rows) > 0


VOTES: dict[str, Vote] = {
    "majority": majority,
    "posterior": posterior_majority,
    "best-of-n": best_of_n,
    "best-of-majority": lambda candidates: best_of_majority(candidates, 0.3),
    "first-finish": first_finish,
    "multi-temperature": multi_temperature_vote,
    "rpc": rpc,
    **{f"best-of-n, {a}": lambda c, a=a: best_of_n(c, a) for a in ("prod", "min", "max", "mean", "model")},  # type: ignore[misc]
    **{f"weighted, {a}": lambda c, a=a: weighted_majority(c, a) for a in ("last", "prod", "min", "max", "mean", "model")},  # type: ignore[misc]
}

candidates = st.lists(
    st.builds(
        lambda answer, z, tokens, temperature, path: Candidate(
            answer, 0.1 + abs(z), (z, z / 3), tokens, -float(tokens), tokens != 3, temperature, path, whole_log_odds=z / 2
        ),
        st.sampled_from(["1", "2", "3", None]),
        st.sampled_from([-1.3, 0.1, 0.7]),
        st.integers(1, 4),
        st.sampled_from([0.5, 1.0]),
        st.sampled_from("abcdef"),
    ),
    min_size=1,
    max_size=4,
)


def outcomes(vote: Vote, mixed: Sequence[Candidate]) -> set[object]:
    return {vote(order) for order in itertools.permutations(mixed)}


@settings(max_examples=60, deadline=None)
@given(mixed=candidates)
def test_every_order_gives_the_same_but_for_ties(mixed: list[Candidate]) -> None:
    """In all orders only answers win that are first in some order; where one answer is best in one order, no other wins in another without
    a tie: adding a candidate that breaks it in favour of either makes all orders agree.
    """
    for name, vote in VOTES.items():
        won = outcomes(vote, _distinct_paths(mixed) if name == "rpc" else mixed)
        if len(won) > 1:
            assert tied(name, mixed, won), (name, won)


def _distinct_paths(mixed: Sequence[Candidate]) -> list[Candidate]:
    """One text has one answer and one probability."""
    return list({candidate.path: candidate for candidate in mixed}.values())


def tied(name: str, mixed: Sequence[Candidate], won: set[object]) -> bool:
    """Whether answers that win in some order are equally good by the definition, computed without regard to order."""
    kind, _, aggregation = name.partition(", ")
    aggregation = aggregation or "last"

    def worth(answer: object) -> float:
        own = [c for c in mixed if c.answer == answer]
        match kind:
            case "majority":
                return len(own)
            case "posterior":
                return math.fsum(sorted(c.weight for c in own))
            case "weighted":
                return math.fsum(sorted(math.exp(log_score(c, aggregation)) for c in own))
            case "best-of-n" | "best-of-majority":
                return max(log_score(c, aggregation) for c in own)
            case "first-finish":
                return -min(c.tokens for c in own if c.finished)
            case "rpc":
                return math.fsum(sorted(math.exp(c.log_prob or 0.0) for c in _distinct_paths(mixed) if c.answer == answer))
        return 0.0  # a vote of votes ties at either stage

    return len({worth(answer) for answer in won}) == 1


def test_sums_that_floating_point_orders_differently_stay_ties() -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last digit when added from the left."""
    weights = (0.1, 0.2, 0.3)
    assert sum(weights) != sum(reversed(weights))
    up = [Candidate("up", weight) for weight in weights]
    down = [Candidate("down", weight) for weight in reversed(weights)]
    assert posterior_majority([*up, *down]) == "up" and posterior_majority([*down, *up]) == "down"


def test_by_hand() -> None:
    three = [
        Candidate("1", 0.5, (2.0, -2.0), 9, -3.0, path="a", whole_log_odds=0.0),
        Candidate("2", 0.3, (0.5, 0.6), 4, -2.0, path="b", whole_log_odds=-1.0, temperature=0.5),
        Candidate("2", 0.2, (0.4, 0.1), 7, -2.5, path="c", whole_log_odds=-1.5, temperature=0.5),
    ]
    assert best_of_n(three, "model") == "1" and weighted_majority(three, "model") == "1"  # 0.5 against 0.269 + 0.182 = 0.451
    assert best_of_n(three, "last") == "2" and best_of_n(three, "min") == "2"  # 0.646; least 0.622 against 0.525 and 0.119
    assert weighted_majority(three, "prod") == "2"  # 0.881 x 0.119 = 0.105 against 0.402 + 0.314
    assert math.exp(log_score(three[0], "model")) == 0.5
    assert multi_temperature_vote(three) == "1"  # a share of 1 at each temperature: the answer that is met first
    assert rpc(three) == "2"  # exp(-2) + exp(-2.5) against exp(-3)
    assert expected_accuracy(three, lambda answer: answer == "2") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no score of the whole solution; record it with evaluate --answer-scores"):
        best_of_n([Candidate("1", step_log_odds=(1.0,))], "model")
