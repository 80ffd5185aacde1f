"""Figures of merit, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..answers import Answer
from .aggregators import Candidate, majority


class Interval(NamedTuple):
    """An estimate with an interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021).

    :raises ValueError: if ``k`` exceeds the number of samples, or the counts make no sense.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in 1 .. {num_samples} (the number of samples), got {k!r}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct must lie in 0 .. {num_samples}, got {num_correct!r}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_at_k(candidates: Sequence[Candidate], gold: Answer, k: int, draws: int = 200, seed: int = 0) -> float:
    """Accuracy of a majority vote among k of the samples, averaged over random subsets; exact for ``k = n``."""
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must lie in 1 .. {len(candidates)} (the number of samples), got {k!r}")
    if k == len(candidates):
        return float(majority(candidates) == gold)
    rng = np.random.default_rng(seed)
    hits = [majority([candidates[i] for i in rng.choice(len(candidates), k, replace=False)]) == gold for _ in range(draws)]
    return float(np.mean(hits))


class PowerLaw(NamedTuple):
    """Coverage ``exp(-scale * k ** -exponent)`` (Brown et al., Large Language Monkeys, 2024)."""

    scale: float
    exponent: float

    def __call__(self, k: ArrayLike) -> NDArray[np.float64]:
        return np.exp(-self.scale * np.asarray(k, dtype=np.float64) ** -self.exponent)


def fit_coverage(ks: Sequence[int], coverage: Sequence[float]) -> PowerLaw:
    """Least squares of ``log(-log coverage)`` on ``log k``; points of coverage 0 or 1 say nothing and are left out.

    :raises ValueError: with fewer than two usable points.
    """
    points = [(math.log(k), math.log(-math.log(c))) for k, c in zip(ks, coverage, strict=True) if 0 < c < 1]
    if len(points) < 2:
        raise ValueError(f"a power law needs two budgets with a coverage between 0 and 1, got {list(coverage)}")
    log_k, height = zip(*points, strict=True)
    slope, intercept = np.polyfit(np.array(log_k), np.array(height), 1)
    return PowerLaw(float(math.exp(intercept)), float(-slope))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counted half; nan where one class is missing."""
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    rank = middle[where]
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of probabilities."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(labels, dtype=np.float64)) ** 2))


class Bin(NamedTuple):
    """A bar of a reliability diagram."""

    confidence: float
    frequency: float
    size: int


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> list[Bin]:
    """Mean prediction and frequency of the event in bins of equal width; empty bins are left out."""
    p, hit = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    which = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [Bin(float(p[which == b].mean()), float(hit[which == b].mean()), int((which == b).sum())) for b in np.unique(which)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error of a reliability diagram."""
    total = sum(b.size for b in bins)
    return sum(b.size * abs(b.confidence - b.frequency) for b in bins) / total


def false_positive_rate(scores: Sequence[float], correct: Sequence[bool], threshold: float) -> float:
    """Share of wrong solutions among those that the verifier accepts (Inference Scaling fLaws, 2024); nan if it accepts none."""
    accepted = [right for score, right in zip(scores, correct, strict=True) if score >= threshold]
    return 1 - sum(accepted) / len(accepted) if accepted else math.nan


def bootstrap(
    table: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval over problems and seeds, both resampled.

    :param table: ``[problems, seeds]`` or ``[problems, seeds, methods]``; methods stay together, so that differences are paired.
    :param statistic: of a resampled table; by default the mean.
    """
    data = np.asarray(table, dtype=np.float64)
    data = data[:, None] if data.ndim == 1 else data
    measure = statistic or (lambda sample: float(sample.mean()))
    rng = np.random.default_rng(seed)
    problems, seeds = data.shape[:2]
    values = []
    for _ in range(draws):
        rows = rng.integers(problems, size=(problems, 1))
        columns = rng.integers(seeds, size=(problems, seeds))
        values.append(measure(np.asarray(data[rows, columns])))
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return Interval(measure(data), math.nan, math.nan)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(measure(data), float(low), float(high))
