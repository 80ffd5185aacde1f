"""Self-certainty of completions, and the vote by its ranks (Kang, Zhao, Song, 2025, arXiv:2502.18581)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..answers.voting import Answer
from .aggregators import Candidate, best, tally


def self_certainty(log_probs: ArrayLike) -> float:
    """``-1 / (n V) sum_i sum_j log(V p_ij)``: the Kullback-Leibler divergence from the uniform distribution to the language model's, in
    nats, averaged over the n tokens of a completion. 0 for a uniform distribution, larger the surer the model is.

    :param log_probs: ``[n, V]``, of the whole vocabulary where each of the tokens was sampled.
    :raises ValueError: without tokens, or for an entry of probability 0, such as one that top-p sampling has cut off: the divergence is
        infinite then.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"log_probs must have the shape [n, V] with at least one token, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("self-certainty needs finite log-probabilities; take the language model's own, before top-k or top-p")
    return float(-values.mean() - np.log(values.shape[1]))


def borda_vote(candidates: Sequence[Candidate], power: float = 1.0) -> Answer:
    """The answer with the most votes, where the candidate of rank r by self-certainty has ``(N - r + 1) ** power`` votes.

    All N candidates are ranked, 1 being the surest; those without an answer do not vote. Equally sure ones have the mean of their votes
    each.

    :param float power: 0 is a majority vote; the larger, the more the surest decide.
    :raises ValueError: if a candidate lacks its self-certainty, or ``power`` is negative.
    """
    if power < 0:
        raise ValueError(f"power must not be negative, got {power!r}")
    if any(candidate.self_certainty is None for candidate in candidates):
        raise ValueError("borda_vote needs each candidate's self_certainty; record it when the samples are drawn")
    if not candidates:
        return None
    sure = np.array([candidate.self_certainty for candidate in candidates], dtype=np.float64)
    # In order of rising certainty the places 1 .. N are N - r + 1.
    votes = np.arange(1, len(sure) + 1, dtype=np.float64) ** power
    _, group, sizes = np.unique(sure, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(votes, np.concatenate([[0], np.cumsum(sizes)[:-1]])) / sizes
    worth = dict(zip(map(id, candidates), shared[group], strict=True))
    return best(tally(candidates, lambda candidate: float(worth[id(candidate)])))
