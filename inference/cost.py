"""Counters of work done (tokens, forward passes, seconds), collected by a meter around the run.

Models of any kind call :func:`count`; algorithms open a :class:`CostMeter` around a run and report it as ``posterior.cost``.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar, Token
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


class Uncounted:
    """Until :meth:`end` or the end of the ``with`` block nothing is counted, because known work is being replayed."""

    def __enter__(self) -> Uncounted:
        self._token: Token[tuple[CostMeter, ...]] | None = _METERS.set(())
        return self

    def end(self) -> None:
        if self._token is not None:
            _METERS.reset(self._token)
            self._token = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
