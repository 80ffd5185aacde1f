"""Counters of work done (tokens, forward passes, seconds), collected by whoever asks for them.

Models of any kind call :func:`count`; algorithms open a :class:`CostMeter` around a run and report it as ``posterior.cost``.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from types import TracebackType

_METERS: ContextVar[tuple[CostMeter, ...]] = ContextVar("ppl_llm_cost_meters", default=())


def count(**amounts: float) -> None:
    """Add amounts to every open meter: ``count(tokens_sampled=64, lm_forwards=1)``."""
    for meter in _METERS.get():
        meter.totals.update(amounts)


class CostMeter:
    """Collects what :func:`count` reports while it is open; meters nest.

    :ivar collections.Counter totals: amount per counter name.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()

    def __enter__(self) -> CostMeter:
        self._token = _METERS.set((*_METERS.get(), self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _METERS.reset(self._token)
