"""Votes over the answers of candidates."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..inference.posterior.discrete_marginal import DiscreteMarginal, pool
from ..inference.posterior.equivalence_classes import Equivalent

Answer = Hashable | None


def weighted_majority(answers: Sequence[Answer], weights: Sequence[float], equivalent: Equivalent | None = None) -> Answer:
    """The answer with the largest total weight; particles without an answer have no vote. Ties go to the first.

    :param equivalent: pools the votes of answers that count as the same, e.g. :class:`~ppl_llm.MathEquivalence`; the winning class gives
        its representative (:func:`~ppl_llm.inference.representatives`). By default answers are compared as they are written.
    :returns: ``None`` if no particle of positive weight has an answer.
    """
    votes = [(answer, weight) for answer, weight in zip(answers, weights, strict=True) if answer is not None and weight > 0]
    return pool(DiscreteMarginal(votes), equivalent).mode if votes else None


def majority(answers: Sequence[Answer], equivalent: Equivalent | None = None) -> Answer:
    """The most frequent answer (self-consistency); see :func:`weighted_majority`."""
    return weighted_majority(answers, [1.0] * len(answers), equivalent)


def argmax(answers: Sequence[Answer], scores: Sequence[float]) -> Answer:
    """The answer of the particle with the highest score (best-of-N); particles without an answer are passed over."""
    given = [(score, -i, answer) for i, (answer, score) in enumerate(zip(answers, scores, strict=True)) if answer is not None]
    return max(given, key=lambda item: item[:2])[2] if given else None
