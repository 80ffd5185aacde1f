"""Answering less often, and being right more often: risk against coverage, and counts of repeated samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class RiskCoverage(NamedTuple):
    """Risk-coverage curve (El-Yaniv & Wiener, *On the Foundations of Noise-free Selective Classification*, 2010).

    :ivar coverage: share of the problems that are answered when those of at least a certain confidence are, ascending.
    :ivar risk: share of wrong answers among them.
    :ivar area: mean risk over all numbers of answered problems (AURC); a random order of confidence gives the plain error rate.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    area: float


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Of answers that are given in order of confidence. Equal confidences come together: among them the order is no information, and the
    area is its mean over all of their orders.

    :param confidence: of each problem's answer, e.g. its posterior probability.
    :param correct: whether it is right.
    :raises ValueError: without answers, for confidences that are not numbers, or for lists of different lengths.
    """
    sure, wrong = np.asarray(confidence, dtype=np.float64), 1.0 - np.asarray(correct, dtype=np.float64)
    if sure.shape != wrong.shape or sure.ndim != 1:
        raise ValueError(f"confidence and correct must be two lists of one length, got shapes {sure.shape} and {wrong.shape}")
    if not len(sure):
        raise ValueError("there is no answer to compute a risk of")
    if np.isnan(sure).any():
        raise ValueError(f"confidence {int(np.isnan(sure).argmax())} is nan")
    _, where, sizes = np.unique(-sure, return_inverse=True, return_counts=True)
    errors = np.bincount(where, weights=wrong)
    answered, failed = sizes.cumsum(), errors.cumsum()
    one_by_one = np.repeat(errors / sizes, sizes).cumsum()  # expected errors among the first k
    area = float(np.mean(one_by_one / np.arange(1, len(sure) + 1)))
    return RiskCoverage(answered / len(sure), failed / answered, area)


def all_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that k samples are all correct: ``C(c, k) / C(n, k)`` (pass^k of Yao et al., tau-bench, 2024).

    :raises ValueError: if ``k`` exceeds the number of samples, or the counts make no sense.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in 1 .. {num_samples} (the number of samples), got {k!r}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct must lie in 0 .. {num_samples}, got {num_correct!r}")
    return math.comb(num_correct, k) / math.comb(num_samples, k)


def pass_until(num_correct: int, num_samples: int) -> float:
    """Unbiased estimate of pass@1 where sampling stopped at the r-th correct answer, the K-th in all: ``(r - 1) / (K - 1)``, the
    minimum-variance estimator of inverse binomial sampling (Haldane, 1945). ``r / K`` would be too high.

    :raises ValueError: with fewer than two correct answers, or fewer samples than these.
    """
    if num_correct < 2:
        raise ValueError(f"the rule must wait for at least 2 correct answers, got {num_correct!r}")
    if num_samples < num_correct:
        raise ValueError(f"num_samples must be at least {num_correct} (the correct ones), got {num_samples!r}")
    return (num_correct - 1) / (num_samples - 1)


def saturation(ceiling: float, chance: float, tolerance: float) -> int:
    """Samples after which another one gains less than ``tolerance``, if accuracy is ``F (1 - (1 - p) ** N)``:
    ``ceil(ln(tolerance / (F p)) / ln(1 - p))``, the first N with ``F p (1 - p) ** N <= tolerance`` (TTSPM).

    :param float ceiling: F, accuracy of unlimited samples.
    :param float chance: p, that one sample is right where any is.
    :raises ValueError: for a ceiling or a chance outside of (0, 1], or a tolerance that is not positive.
    """
    for name, value in (("ceiling", ceiling), ("chance", chance)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    gain = ceiling * chance
    if gain <= tolerance:
        return 0
    if chance == 1:
        return 1
    exact = math.log(tolerance / gain) / math.log1p(-chance)
    return math.ceil(exact - 1e-9 * max(1.0, exact))  # a gain that is the tolerance but for rounding
