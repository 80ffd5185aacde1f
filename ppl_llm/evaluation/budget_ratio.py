"""How many times the budget one method needs for the accuracy of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array, problem_means, resampled_means, tail_probability

_LEVELS = 19
"""Accuracies between the lowest and the highest that both methods reach, at which budgets are compared."""


class BudgetRatio(NamedTuple):
    """A ratio of budgets, or what bounds it.

    :ivar float value: the estimate; nan where only a bound is known.
    :ivar float low: lower end of the interval; 0 where there is none.
    :ivar float high: upper end of the interval; infinite where there is none.
    :ivar float overlap: share of the bootstrap draws in which both methods reach a common accuracy.
    """

    value: float
    low: float
    high: float
    overlap: float

    def __str__(self) -> str:
        value, low, high = (f"{x:.1f}" if x >= 1 else f"{x:.2f}" for x in self[:3])
        if not math.isnan(self.value):
            return f"{value} [{low}, {high}]"
        shares = f"({self.overlap:.0%} overlap)"
        if self.low > 0:
            return f"> {low} {shares}"
        return f"< {high} {shares}" if math.isfinite(self.high) else f"unknown {shares}"


def bootstrap_ratio(
    first: tuple[Sequence[int], ArrayLike],
    second: tuple[Sequence[int], ArrayLike],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> BudgetRatio:
    """Budget of the second method over that of the first, with a percentile interval over problems.

    A draw in which the first method is better at its smallest budget than the second at its largest has no ratio, but a bound: the ratio
    exceeds the quotient of these two budgets. Left out, such draws would take the largest ratios with them. They count as infinite, those
    the other way round as 0. Where an end of the interval falls among them, there is no estimate: what is left is a one-sided bound,
    at the same level.

    :param first: budgets, and ``[problems, seeds, budgets]`` of the hits at each.
    :param second: the same of the other method, on the same problems.
    """
    xs, ys = first[0], second[0]
    tables = [problem_means(table) for _, table in (first, second)]
    paired = np.concatenate(tables, -1)[:, None]
    split = len(xs)

    def ratio(means: Array) -> Array:
        means = np.round(means, 12)  # equal accuracies are equal, whatever the order in which this machine adds
        return budget_ratios(xs, means[..., :split], ys, means[..., split:])

    values = ratio(resampled_means(paired, draws, seed))
    known = values[~np.isnan(values)]
    if not known.size:
        return BudgetRatio(math.nan, 0.0, math.inf, 0.0)
    with np.errstate(invalid="ignore"):
        value = float(ratio(np.nanmean(paired[:, 0], 0)))
    overlap = float(np.mean((known > 0) & np.isfinite(known)))
    size = int((~np.isnan(paired[:, 0])).any(-1).sum())
    tail = tail_probability(size, level)
    low, high = _quantiles(known, tail)
    if low > 0 and math.isfinite(high):
        return BudgetRatio(value, low, high, overlap)
    low, high = _quantiles(known, tail_probability(size, 2 * level - 1))
    most, least = ys[-1] / xs[0], ys[0] / xs[-1]
    if math.isfinite(high) and low <= 0:
        return BudgetRatio(math.nan, 0.0, max(high, least), overlap)
    if low > 0:
        return BudgetRatio(math.nan, min(low, most), math.inf, overlap)
    return BudgetRatio(math.nan, 0.0, math.inf, overlap)


def _quantiles(values: Array, tail: float) -> tuple[float, float]:
    """Both ends, each a draw: nothing is interpolated between a number and infinity."""
    ordered = np.sort(values)
    place = math.floor(tail * (len(ordered) - 1))
    return float(ordered[place]), float(ordered[-1 - place])


def budget_ratios(xs: Sequence[int], x_means: Array, ys: Sequence[int], y_means: Array) -> Array:
    """Geometric mean over the accuracies that both methods reach, between their budgets by interpolation of accuracy on the logarithm of
    the budget; an accuracy is reached once a budget up to there has it.

    :param x_means: ``[..., budgets]`` of the first method.
    :param y_means: ``[..., budgets]`` of the second.
    :returns: ``[...]``: infinite where the first method is better throughout, 0 where the second is, nan where a mean is missing.
    """
    first, second = np.maximum.accumulate(x_means, -1), np.maximum.accumulate(y_means, -1)
    low, high = np.maximum(first[..., 0], second[..., 0]), np.minimum(first[..., -1], second[..., -1])
    levels = low[..., None] + (high - low)[..., None] * (np.arange(_LEVELS) + 1) / (_LEVELS + 1)
    needed = [_log_budget(levels, curve, np.log(own)) for curve, own in ((first, xs), (second, ys))]
    ratio = np.exp(np.mean(needed[1] - needed[0], -1))
    apart = np.where(first[..., 0] > second[..., -1], math.inf, 0.0)
    return np.where(np.isnan(low + high), math.nan, np.where(high >= low, ratio, apart))


def _log_budget(levels: Array, curve: Array, log_budgets: Array) -> Array:
    """``[..., levels]``: where a curve ``[..., budgets]`` that does not fall first reaches each level; its ends beyond them."""
    above = np.clip((curve[..., None, :] < levels[..., None] - 1e-12).sum(-1), 0, curve.shape[-1] - 1)
    below = np.maximum(above - 1, 0)
    left, right = np.take_along_axis(curve, below, -1), np.take_along_axis(curve, above, -1)
    rise = right - left
    share = np.where(rise > 0, (levels - left) / np.where(rise > 0, rise, 1.0), 1.0)
    found: Array = log_budgets[below] + np.clip(share, 0.0, 1.0) * (log_budgets[above] - log_budgets[below])
    return found
