"""Answers from weighted candidates: votes that need no model, so that they can be recomputed from records.

Every aggregator is a function of a list of :class:`Candidate` that does not depend on the candidates' order, except that ties go to the
answer met first, as in search-and-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..answers.voting import Answer

AGGREGATIONS = ("last", "prod", "min", "max", "mean")
"""Scores of a solution from those of its steps."""

MODEL = "model"
"""The model-based score: the reward model's own, of the whole solution written as one step."""


class Thought(NamedTuple):
    """How a solution thought.

    :ivar int tokens: of its thinking, the closing tag included.
    :ivar int waits: how many times the tag was replaced.
    :ivar str closed: by the ``model`` or at the ``bound``; ``None`` where it never was.
    """

    tokens: int
    waits: int
    closed: str | None


@dataclass(frozen=True)
class Candidate:
    """One completion.

    :ivar Answer answer: extracted, ``None`` where there is none.
    :ivar float weight: posterior weight.
    :ivar step_log_odds: the reward model's log-odds of each step.
    :ivar int tokens: length.
    :ivar float log_prob: log-probability under the language model, where it was recorded.
    :ivar bool finished: whether the text came to its end.
    :ivar float temperature: at which it was sampled.
    :ivar str path: identifies the text, so that repeated paths are known.
    :ivar float whole_log_odds: the reward model's log-odds of the whole solution written as one step, where they were recorded.
    :ivar float confidence: how sure the language model was of it, where it was recorded, see :class:`~ppl_llm.Confidence`.
    :ivar str text: where it was recorded.
    :ivar tuple step_tokens: length of each step, where they were recorded.
    :ivar int cut_steps: how many of them were as long as they may be, and so were cut.
    :ivar Thought thinking: ``None`` where solutions do not think before they answer.
    """

    answer: Answer
    weight: float = 1.0
    step_log_odds: tuple[float, ...] = ()
    tokens: int = 0
    log_prob: float | None = None
    finished: bool = True
    temperature: float = 1.0
    path: str | None = None
    whole_log_odds: float | None = None
    confidence: float | None = None
    text: str | None = None
    step_tokens: tuple[int, ...] | None = None
    cut_steps: int = 0
    thinking: Thought | None = None


def log_score(candidate: Candidate, aggregation: str = "last") -> float:
    """Log of the score of a candidate.

    :param str aggregation: of its steps: ``last``, ``prod``, ``min``, ``max`` or ``mean``; ``model`` is the
        score of all of them as one step.
    :raises ValueError: for another aggregation, or a candidate without scores.
    """
    if aggregation == MODEL:
        if candidate.whole_log_odds is None:
            raise ValueError("the candidate has no score of the whole solution; record it with evaluate --answer-scores")
        return _log_sigmoid(candidate.whole_log_odds)
    if not candidate.step_log_odds:
        raise ValueError("the candidate has no step scores; record them, or take an aggregator that needs none, such as majority")
    log_r = [_log_sigmoid(z) for z in candidate.step_log_odds]
    if aggregation == "last":
        return log_r[-1]
    if aggregation == "prod":
        return sum(log_r)
    if aggregation == "min":
        return min(log_r)
    if aggregation == "max":
        return max(log_r)
    if aggregation == "mean":
        return math.log(sum(map(math.exp, log_r)) / len(log_r))
    raise ValueError(f"unknown aggregation {aggregation!r}; known: {', '.join((*AGGREGATIONS, MODEL))}")


def _log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def tally(candidates: Sequence[Candidate], worth: Callable[[Candidate], float]) -> dict[Answer, float]:
    """Total worth of each answer, in order of first appearance; candidates without an answer have no vote."""
    votes: dict[Answer, list[float]] = {}
    for candidate in candidates:
        if candidate.answer is not None:
            votes.setdefault(candidate.answer, []).append(worth(candidate))
    # Correctly rounded sums: the same votes in another order are the same total, and a tie stays one.
    return {answer: math.fsum(worths) for answer, worths in votes.items()}


def best(totals: dict[Answer, float]) -> Answer:
    """The answer with the largest total, the first of several; ``None`` if there is none."""
    return max(totals, key=lambda answer: totals[answer]) if totals else None


def majority(candidates: Sequence[Candidate]) -> Answer:
    """Self-consistency (Wang et al., 2022): the most frequent answer."""
    return best(tally(candidates, lambda candidate: 1.0))


def posterior_majority(candidates: Sequence[Candidate]) -> Answer:
    """The answer of the largest posterior weight; ``None`` where every candidate with an answer has weight zero."""
    return best(tally([candidate for candidate in candidates if candidate.weight > 0], lambda candidate: candidate.weight))


def weighted_majority(candidates: Sequence[Candidate], aggregation: str = "last") -> Answer:
    """Weighted best-of-N (Li et al., 2023): the answer with the largest sum of scores."""
    return best(tally(candidates, lambda candidate: math.exp(log_score(candidate, aggregation))))


def best_of_n(candidates: Sequence[Candidate], aggregation: str = "last") -> Answer:
    """The answer of the candidate with the highest score; candidates without an answer are passed over."""
    given = [candidate for candidate in candidates if candidate.answer is not None]
    return max(given, key=lambda candidate: log_score(candidate, aggregation)).answer if given else None


def best_of_majority_at_k(candidates: Sequence[Candidate], k: int, frequency: float = 0.1, aggregation: str = "last") -> list[Answer]:
    """Best-of-Majority (arXiv:2510.03199): of the answers of at least a given frequency, the k with the highest rewards, best first.

    The reward of an answer is the highest score of its candidates. Where no answer is that frequent, all are taken; where fewer than k
    are, so many are returned.

    :param int k: answers that may be submitted.
    :param float frequency: least share of the candidates that an answer must have (the paper's alpha).
    :raises ValueError: if ``frequency`` is not in [0, 1], or ``k`` below 1.
    """
    if not 0 <= frequency <= 1:
        raise ValueError(f"frequency must lie in [0, 1], got {frequency!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    counts = tally(candidates, lambda candidate: 1.0)
    # Divided, not multiplied: 0.28 * 25 is more than 7.
    frequent = [answer for answer, count in counts.items() if count / len(candidates) >= frequency] or list(counts)
    rewards = {a: max(log_score(c, aggregation) for c in candidates if c.answer == a) for a in frequent}
    return sorted(rewards, key=lambda answer: -rewards[answer])[:k]


def best_of_majority(candidates: Sequence[Candidate], frequency: float = 0.1, aggregation: str = "last") -> Answer:
    """The first answer of :func:`best_of_majority_at_k`; ``None`` if no candidate has an answer."""
    return next(iter(best_of_majority_at_k(candidates, 1, frequency, aggregation)), None)


def first_finish(candidates: Sequence[Candidate]) -> Answer:
    """The answer of the shortest finished candidate (First Finish Search, arXiv:2505.18149)."""
    given = [candidate for candidate in candidates if candidate.finished and candidate.answer is not None]
    return min(given, key=lambda candidate: candidate.tokens).answer if given else None


def multi_temperature_vote(candidates: Sequence[Candidate]) -> Answer:
    """A majority vote within each temperature, then one among their winners, weighted by their shares (arXiv:2510.02611)."""
    shares: dict[Answer, list[float]] = {}
    for temperature in sorted({candidate.temperature for candidate in candidates}):
        group = [candidate for candidate in candidates if candidate.temperature == temperature]
        counts = tally(group, lambda candidate: 1.0)
        winner = best(counts)
        if winner is not None:
            shares.setdefault(winner, []).append(counts[winner] / len(group))
    return best({answer: math.fsum(won) for answer, won in shares.items()})


def expected_accuracy(candidates: Sequence[Candidate], is_correct: Callable[[Answer], bool]) -> float:
    """Posterior probability of a correct answer: the accuracy of one draw from the posterior."""
    total = sum(candidate.weight for candidate in candidates)
    return sum(candidate.weight for candidate in candidates if is_correct(candidate.answer)) / total
