"""Confidence intervals for means over problems and seeds. The unit is the problem: seeds are averaged within it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_ROUNDING = 1e-9

_PRIOR = 0.25
"""Variance of a problem that is right half of the time, whatever the seed."""


class Interval(NamedTuple):
    """An estimate with an interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def problem_means(table: ArrayLike) -> Array:
    """``[problems, columns]``: the mean of each problem over its seeds; nan where a problem has no value.

    :param table: ``[problems]``, ``[problems, seeds]`` or ``[problems, seeds, columns]``; nan where a value is missing.
    """
    data = np.asarray(table, dtype=np.float64)
    data = data.reshape(*data.shape, *[1] * (3 - data.ndim))
    known = ~np.isnan(data)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(known, data, 0.0).sum(1) / known.sum(1)
    return means


def mean_over_problems(table: ArrayLike) -> float:
    """Mean of the problems' means; nan if nothing is known.

    :param table: as for :func:`problem_means`, with one column.
    """
    means = problem_means(table)[:, 0]
    known = means[~np.isnan(means)]
    return float(known.mean()) if known.size else math.nan


def wilson(value: float, trials: float, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson, 1927): within [0, 1], and never of width zero.

    :param float value: share of successes.
    :param float trials: their number, which need not be whole.
    """
    z = _normal_quantile(level)
    shrunk = 1 + z**2 / trials
    centre = (value + z**2 / (2 * trials)) / shrunk
    half = z / shrunk * math.sqrt(value * (1 - value) / trials + z**2 / (4 * trials**2))
    # At shares of 0 and 1 the ends are exactly 0 and 1; the formula leaves a rounding error.
    return Interval(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)))


def proportion(table: ArrayLike, among: ArrayLike | None = None, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a mean of numbers in [0, 1], such as an accuracy, at the effective number of problems.

    With one seed and hits of 0 and 1 it is the plain Wilson interval over problems. With several seeds a problem counts as more than
    one trial, the more the less its seeds agree: the number of problems is divided by the design effect, the variance of the problems'
    means over that of single hits (Kish, 1965; for score intervals Franco et al., 2019). One problem whose seeds agree, with the largest
    variance that a problem can have (1/4), is added to both variances, so that a few hits alone do not decide how much seeds agree.

    :param table: ``[problems, seeds]`` in [0, 1], nan where a value is missing.
    :param among: ``[problems, seeds]`` of shares that are the trials, such as how often a solution was accepted, where ``table`` says
        how often it was accepted and wrong; by default 1 everywhere.
    :raises ValueError: for a value outside [0, 1].
    """
    hits = problem_means(table)[:, 0]
    trials = np.where(np.isnan(hits), math.nan, 1.0) if among is None else problem_means(among)[:, 0]
    known = ~np.isnan(hits) & ~np.isnan(trials)
    hits, trials = hits[known], trials[known]
    outside = hits[(hits < -_ROUNDING) | (hits > 1 + _ROUNDING)]
    if outside.size:
        raise ValueError(f"a proportion needs values in [0, 1], got {outside[0]:g}; for other values there is bootstrap")
    hits = np.clip(hits, 0.0, 1.0)
    total = float(trials.sum())
    if total <= 0:
        return Interval(math.nan, math.nan, math.nan)
    value = min(1.0, float(hits.sum()) / total)
    single = total * value * (1 - value)
    effect = (float(((hits - value * trials) ** 2).sum()) + _PRIOR) / (single + _PRIOR)
    return wilson(value, total / effect, level)


def bootstrap(
    table: ArrayLike,
    statistic: Callable[[Array], Array] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Interval:
    """Percentile interval over problems, which are resampled; seeds are averaged within each problem.

    Resampling seeds as well would count their noise twice: it is in the means of the problems already. For few problems the percentiles
    are moved outwards as Student's distribution demands (Hesterberg, 2015). Where all problems have the same mean, resampling says
    nothing: the interval then holds what n equal problems leave possible, that less than a share ``u`` of all problems, with
    ``(1 - u)^n = (1 - level) / 2``, lies at either end of ``bounds``.

    :param table: ``[problems, seeds]`` or ``[problems, seeds, columns]``, nan where a value is missing. Columns are resampled together,
        so that what is computed from several is paired.
    :param statistic: ``[...]`` from the means ``[..., columns]`` over the problems; by default the mean of the only column.
    :param tuple bounds: least and largest value of the mean of a problem, for problems that are all alike; not used for values
        outside, nor with a ``statistic``. The default is that of differences of accuracies.
    """
    means, draws_of = problem_means(table), resampled_means(table, draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = ~np.isnan(means)
        whole = np.where(known, means, 0.0).sum(0) / known.sum(0)
        measure = statistic or (lambda each: each[..., 0])
        value, values = float(measure(whole)), np.asarray(measure(draws_of), dtype=np.float64)
    size = int(known.any(-1).sum())
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Interval(value, math.nan, math.nan)
    if statistic is None and np.ptp(means[known]) == 0 and bounds[0] <= value <= bounds[1]:
        share = 1 - ((1 - level) / 2) ** (1 / size)
        return Interval(value, value - share * (value - bounds[0]), value + share * (bounds[1] - value))
    tail = tail_probability(size, level)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def resampled_means(table: ArrayLike, draws: int, seed: int = 0) -> Array:
    """``[draws, columns]``: means over problems drawn with replacement.

    :param table: as for :func:`problem_means`.
    """
    means = problem_means(table)
    known = ~np.isnan(means)
    counts = _multiplicities(len(means), draws, seed)
    with np.errstate(invalid="ignore"):
        found: Array = (counts @ np.where(known, means, 0.0)) / (counts @ known)
    return found


def tail_probability(problems: int, level: float = 0.95) -> float:
    """Share of the bootstrap draws beyond either end of an interval: ``Phi(-sqrt(n / (n - 1)) t)`` for Student's quantile t.

    Resampling n problems gives a variance that is ``(n - 1) / n`` of the right one, and normal tails in place of Student's.
    """
    if problems < 2:
        return (1 - level) / 2
    return NormalDist().cdf(-math.sqrt(problems / (problems - 1)) * _student_quantile(problems - 1, level))


def _normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _student_quantile(freedom: int, level: float) -> float:
    """Cornish-Fisher expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5): two digits are right from three degrees on."""
    z, v = _normal_quantile(level), float(freedom)
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)


@lru_cache(maxsize=4)
def _multiplicities(problems: int, draws: int, seed: int) -> Array:
    """``[draws, problems]``: how often each problem is in each resampled table."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(problems, np.full(problems, 1 / problems), size=draws).astype(np.float64)
