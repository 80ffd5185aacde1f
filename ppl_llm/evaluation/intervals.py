"""How sure a mean over problems and seeds is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_CELLS = 4_000_000
"""Numbers that one block of resampled tables may have."""


class Interval(NamedTuple):
    """An estimate with an interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    table: ArrayLike,
    statistic: Callable[[Array], float] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval over problems and seeds, both resampled.

    :param table: ``[problems, seeds]`` or ``[problems, seeds, columns]``; cells that are nan are left out of the means. Columns are
        resampled together, so that what is computed from several is paired.
    :param statistic: of the means ``[columns]`` of a resampled table; by default the mean of the only column.
    """
    data = np.asarray(table, dtype=np.float64)
    data = data[:, None] if data.ndim == 1 else data
    cells = data.reshape(data.shape[0] * data.shape[1], -1)
    known = ~np.isnan(cells)
    filled = np.where(known, cells, 0.0)
    measure = statistic or (lambda means: float(means[0]))
    counts = _multiplicities(*data.shape[:2], draws, seed)
    values = []
    rows = max(1, _CELLS // len(cells))
    with np.errstate(invalid="ignore"):
        for start in range(0, draws, rows):
            weights = counts[start : start + rows].astype(np.float64)
            values += [measure(means) for means in (weights @ filled) / (weights @ known)]
        value = measure(filled.sum(0) / known.sum(0))
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=4)
def _multiplicities(problems: int, seeds: int, draws: int, seed: int) -> NDArray[np.uint16]:
    """``[draws, problems * seeds]``: how often each cell is in each resampled table."""
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, problems * seeds), dtype=np.uint16)
    for draw in counts:
        rows = rng.integers(problems, size=(problems, 1))
        columns = rng.integers(seeds, size=(problems, seeds))
        draw[:] = np.bincount((rows * seeds + columns).ravel(), minlength=problems * seeds)
    return counts
