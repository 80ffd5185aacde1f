"""Perplexity consistency with reasoning pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..answers.voting import Answer
from ..inference.util.validation import unknown_name
from .aggregators import Candidate, best, tally

PROBABILITIES = ("sum", "mean")

_ITERATIONS = 100
_SHAPES = (0.05, 50.0)
_FEWEST = 8
"""Samples below which a mixture of five parameters is not fitted and nothing is pruned."""

Array = NDArray[np.float64]


def rpc(candidates: Sequence[Candidate], probability: str = "sum") -> Answer:
    """The answer with the largest total probability over *distinct* paths, improbable paths pruned first (arXiv:2502.00511).

    A mixture of two Weibull distributions is fitted to the path probabilities; a path is dropped if it more likely belongs to the component
    of the smaller mean and its probability is below the mean of all.

    :param str probability: of a path. ``sum``: exp of the sum of its tokens' log-probabilities, as the paper defines it; with hundreds of
        tokens one path outweighs all others, and the vote is its answer. ``mean``: exp of their mean, as the released code computes it.
    :raises ValueError: for another ``probability``, or if a candidate lacks its log-probability, its path or, for ``mean``, its tokens.
    """
    if probability not in PROBABILITIES:
        raise unknown_name("probability", probability, PROBABILITIES)
    paths: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.log_prob is None or candidate.path is None:
            raise ValueError("rpc needs each candidate's log_prob and path; record them when the samples are drawn")
        if probability == "mean" and candidate.tokens < 1:
            raise ValueError("rpc with probability='mean' needs each candidate's number of tokens; record it when the samples are drawn")
        paths.setdefault(candidate.path, candidate)
    distinct = list(paths.values())
    if not distinct:
        return None

    def log_prob(candidate: Candidate) -> float:
        assert candidate.log_prob is not None
        return candidate.log_prob if probability == "sum" else candidate.log_prob / candidate.tokens

    log_p = np.array([log_prob(candidate) for candidate in distinct])
    kept = keep(np.array([log_prob(candidate) for candidate in candidates]), log_p)
    top = float(log_p.max())
    survivors = [candidate for candidate, is_kept in zip(distinct, kept, strict=True) if is_kept]
    return best(tally(survivors, lambda candidate: math.exp(log_prob(candidate) - top)))


def keep(log_probs: Array, queries: Array) -> NDArray[np.bool_]:
    """Which of the paths with log-probabilities ``queries`` survive the pruning, given those of all samples."""
    top = log_probs.max()
    # The rule does not change with the scale of p; the largest is put at one.
    p = np.exp(np.maximum(log_probs - top, -700.0))
    q = np.exp(np.maximum(queries - top, -700.0))
    if len(p) < _FEWEST or np.ptp(p) < 1e-12:
        return np.ones(len(q), dtype=bool)
    components = fit_two_weibulls(p)
    low, high = sorted(components, key=lambda c: c[2] * math.gamma(1 + 1 / c[1]))
    return ~((_log_density(q, *low) > _log_density(q, *high)) & (q < p.mean()))


def fit_two_weibulls(p: Array) -> list[tuple[float, float, float]]:
    """Two (weight, shape, scale) by expectation maximisation, started at the lower and the upper half of the data."""
    member = (p > np.median(p)).astype(np.float64) * 0.8 + 0.1
    log_p = np.log(p)
    components = [(0.5, 1.0, 1.0), (0.5, 1.0, 1.0)]
    for _ in range(_ITERATIONS):
        components = [
            (float(r.mean()), *_fit_weibull(log_p, r, shape)) for r, (_, shape, _) in zip((1 - member, member), components, strict=True)
        ]
        low, high = (_log_density(p, *component) for component in components)
        updated = 1 / (1 + np.exp(np.clip(low - high, -500, 500)))
        if np.abs(updated - member).max() < 1e-8:
            break
        member = np.clip(updated, 1e-6, 1 - 1e-6)
    return components


def _fit_weibull(log_p: Array, weights: Array, shape: float) -> tuple[float, float]:
    """Weighted maximum likelihood: the score of the shape is monotone, so Newton steps that stay between its signs find its root.

    :param float shape: where to start.
    """
    total, top = float(weights.sum()), float(log_p.max())
    mean_log = float(weights @ log_p) / total
    low, high = _SHAPES
    for _ in range(_ITERATIONS):
        powered = weights * np.exp(shape * (log_p - top))
        mass = float(powered.sum())
        mean = float(powered @ log_p) / mass
        score = mean - 1 / shape - mean_log
        low, high = (shape, high) if score < 0 else (low, shape)
        slope = float(powered @ (log_p - mean) ** 2) / mass + 1 / shape**2
        step = shape - score / slope
        before, shape = shape, step if low < step < high else math.sqrt(low * high)
        if abs(shape - before) <= 1e-12 * shape:
            break
    scale = math.exp(math.log(float(weights @ np.exp(shape * (log_p - top))) / total) / shape + top)
    return shape, scale


def _log_density(p: Array, weight: float, shape: float, scale: float) -> Array:
    log_ratio = np.log(p) - math.log(scale)
    density: Array = math.log(weight) + math.log(shape / scale) + (shape - 1) * log_ratio - np.exp(shape * log_ratio)
    return density
