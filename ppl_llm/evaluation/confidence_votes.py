"""Votes by how sure the language model was of each completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..answers.voting import Answer
from ..programs.deepconf import LEAST, surest
from .aggregators import Candidate, best, tally


def self_certainty(log_probs: ArrayLike) -> float:
    """Self-certainty (Kang, Zhao, Song, 2025, arXiv:2502.18581), ``-1 / (n V) sum_i sum_j log(V p_ij)``: the Kullback-Leibler divergence
    from the uniform distribution to the language model's, in nats, averaged over the n tokens of a completion. 0 for a uniform
    distribution, larger the surer the model is. :class:`Confidence("kl") <ppl_llm.Confidence>` takes it while a completion is sampled.

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
    """The answer with the most votes, where the candidate of rank r by confidence has ``(N - r + 1) ** power`` votes; by self-certainty,
    ``Confidence("kl")``, as published (Kang, Zhao, Song, 2025, arXiv:2502.18581).

    All N candidates are ranked, 1 being the surest; those without an answer do not vote. Equally sure ones have the mean of their votes
    each.

    :param float power: 0 is a majority vote; the larger, the more the surest decide.
    :raises ValueError: if a candidate lacks its confidence, or ``power`` is negative.
    """
    if power < 0:
        raise ValueError(f"power must not be negative, got {power!r}")
    sure = _confidences(candidates, "borda_vote")
    if not candidates:
        return None
    # In order of rising certainty the places 1 .. N are N - r + 1.
    votes = np.arange(1, len(sure) + 1, dtype=np.float64) ** power
    _, group, sizes = np.unique(sure, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(votes, np.concatenate([[0], np.cumsum(sizes)[:-1]])) / sizes
    worth = dict(zip(map(id, candidates), shared[group], strict=True))
    return best(tally(candidates, lambda candidate: float(worth[id(candidate)])))


def deepconf_vote(candidates: Sequence[Candidate], eta: float = 0.1) -> Answer:
    """The answer with the most votes among the share ``eta`` of the candidates of the highest confidence, each of which has its confidence
    as vote (DeepConf, Fu et al., 2025, arXiv:2508.15260).

    Candidates without an answer count among those that are chosen from, and do not vote. Those of confidence 0 have votes that are alike,
    and less than any other.

    :raises ValueError: if a candidate lacks its confidence, or ``eta`` is not in (0, 1].
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta must lie in (0, 1], got {eta!r}")
    sure = _confidences(candidates, "deepconf_vote")
    if not candidates:
        return None
    kept = surest(torch.from_numpy(sure), eta).tolist()
    chosen = [candidate for candidate, among in zip(candidates, kept, strict=True) if among]
    return best(tally(chosen, lambda candidate: max(float(candidate.confidence or 0.0), LEAST)))


def _confidences(candidates: Sequence[Candidate], vote: str) -> NDArray[np.float64]:
    if any(candidate.confidence is None for candidate in candidates):
        raise ValueError(f"{vote} needs each candidate's confidence; record it when the samples are drawn (evaluate --confidence)")
    return np.array([candidate.confidence for candidate in candidates], dtype=np.float64)
