"""Answers from weighted candidates: votes that need no model, so that they can be recomputed from records.

Every aggregator is a function of a list of :class:`Candidate` that does not depend on the candidates' order, except that ties go to the
answer met first, as in search-and-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..answers import voting
from ..answers.voting import Answer
from ..distributions.potentials import window_of
from ..inference.search.best_of_majority import best_of_frequent
from ..inference.search.soft_best_of_n import SoftBestOfN
from ..inference.search.two_stage_vote import TwoStageVote

CERTAIN = 1e9
"""Log-odds of what is certain, in records, which hold finite numbers only."""

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
    :ivar int wrong_steps: how many of them are wrong, where the task can tell.
    :ivar Thought thinking: ``None`` where solutions do not think before they answer.
    :ivar bool cut: whether it was cut for its length, by ``max_tokens_completion`` or the model's context.
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
    wrong_steps: int | None = None
    thinking: Thought | None = None
    cut: bool = False


def log_score(candidate: Candidate, aggregation: str = "last") -> float:
    """Log of the score of a candidate, ``-inf`` where a step is certainly wrong, in records log-odds of -1e9: no vote by score chooses it.

    :param str aggregation: of its steps: ``last``, ``prod``, ``min``, ``max``, ``mean``, or ``window:W``, the mean of the last W; ``model``
        is the score of all of them as one step.
    :raises ValueError: for another aggregation, or a candidate without scores.
    """
    if aggregation == MODEL:
        if candidate.whole_log_odds is None:
            raise ValueError("the candidate has no score of the whole solution; record it with evaluate --answer-scores")
        return _log_sigmoid(candidate.whole_log_odds)
    if not candidate.step_log_odds:
        raise ValueError("the candidate has no step scores; record them, or take an aggregator that needs none, such as majority")
    log_r = [_log_sigmoid(z) for z in candidate.step_log_odds]
    if (window := window_of(aggregation)) is not None:
        log_r = log_r[-window:]
    if aggregation == "last":
        return log_r[-1]
    if aggregation == "prod":
        return sum(log_r)
    if aggregation == "min":
        return min(log_r)
    if aggregation == "max":
        return max(log_r)
    if (top := max(log_r)) == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(each - top) for each in log_r) / len(log_r))


def _log_sigmoid(z: float) -> float:
    if z <= -CERTAIN:
        return -math.inf
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


def _living(candidates: Sequence[Candidate], aggregation: str) -> list[tuple[Candidate, float]]:
    """Candidates that have an answer and are not ruled out, with the logarithms of their scores."""
    scored = [(candidate, log_score(candidate, aggregation)) for candidate in candidates if candidate.answer is not None]
    return [(candidate, score) for candidate, score in scored if score > -math.inf]


def _best_by(living: Sequence[tuple[Candidate, float]], worths: Sequence[float]) -> Answer:
    votes: dict[Answer, list[float]] = {}
    for (candidate, _), worth in zip(living, worths, strict=True):
        votes.setdefault(candidate.answer, []).append(worth)
    return best({answer: math.fsum(own) for answer, own in votes.items()})


def weighted_majority(candidates: Sequence[Candidate], aggregation: str = "last") -> Answer:
    """Weighted best-of-N (Li et al., 2023): the answer with the largest sum of scores; ``None`` where every answer is ruled out."""
    living = _living(candidates, aggregation)
    top = max((score for _, score in living), default=0.0)  # products of many steps are too small for floating point
    return _best_by(living, [math.exp(score - top) for _, score in living])


def soft_best_of_n(candidates: Sequence[Candidate], beta: float = 10.0, aggregation: str = "last") -> Answer:
    """The answer with the largest sum of ``softmax(beta r)`` over the candidates' scores r, the most probable one under soft best-of-N
    (Verdun et al., arXiv:2505.03156): 0 is a majority, and much best-of-N. ``None`` where every answer is ruled out.

    :param float beta: not negative.
    :raises ValueError: for a ``beta`` out of range.
    """
    living = _living(candidates, aggregation)
    if not living:
        return None
    scores = torch.tensor([score for _, score in living], dtype=torch.float64)
    return _best_by(living, SoftBestOfN.log_weights(scores, beta).exp().tolist())


def best_of_n(candidates: Sequence[Candidate], aggregation: str = "last") -> Answer:
    """The answer of the candidate with the highest score; those without an answer are passed over, and those that are ruled out."""
    living = _living(candidates, aggregation)
    return max(living, key=lambda each: each[1])[0].answer if living else None


def best_of_majority_at_k(candidates: Sequence[Candidate], k: int, frequency: float = 0.1, aggregation: str = "last") -> list[Answer]:
    """Best-of-Majority (arXiv:2510.03199): of the answers of at least a given frequency, the k with the highest rewards, best first.

    The reward of an answer is the highest score of its candidates; one whose candidates are all ruled out is none. Where no answer is that
    frequent, all are taken; where fewer than k are, so many are returned. The rule is that of :class:`~ppl_llm.BestOfMajority`.

    :param int k: answers that may be submitted.
    :param float frequency: least share of the candidates that an answer must have (the paper's alpha).
    :raises ValueError: if ``frequency`` is not in [0, 1], or ``k`` below 1.
    """
    if not 0 <= frequency <= 1:
        raise ValueError(f"frequency must lie in [0, 1], got {frequency!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    scores = [-math.inf if candidate.answer is None else log_score(candidate, aggregation) for candidate in candidates]
    return [candidates[n].answer for n in best_of_frequent([c.answer for c in candidates], scores, k, frequency)]


def best_of_majority(candidates: Sequence[Candidate], frequency: float = 0.1, aggregation: str = "last") -> Answer:
    """The first answer of :func:`best_of_majority_at_k`; ``None`` if no candidate has an answer."""
    return next(iter(best_of_majority_at_k(candidates, 1, frequency, aggregation)), None)


def first_finish(candidates: Sequence[Candidate]) -> Answer:
    """The answer of the shortest finished candidate (First Finish Search, arXiv:2505.18149)."""
    given = [candidate for candidate in candidates if candidate.finished and candidate.answer is not None]
    return min(given, key=lambda candidate: candidate.tokens).answer if given else None


def multi_temperature_vote(candidates: Sequence[Candidate]) -> Answer:
    """A majority vote within each temperature, then one among their winners, weighted by their shares (arXiv:2510.02611); the rule, ties
    included, is that of :class:`~ppl_llm.TwoStageVote`."""
    answers = [candidate.answer for candidate in candidates]
    log_weights = TwoStageVote.log_weights(answers, [candidate.temperature for candidate in candidates])
    return voting.weighted_majority(answers, log_weights.exp().tolist())


def expected_accuracy(candidates: Sequence[Candidate], is_correct: Callable[[Answer], bool]) -> float:
    """Posterior probability of a correct answer: the accuracy of one draw from the posterior; nan where every weight is zero."""
    total = sum(candidate.weight for candidate in candidates)
    if not total:
        return math.nan
    return sum(candidate.weight for candidate in candidates if is_correct(candidate.answer)) / total
