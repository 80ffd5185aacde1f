"""Who watches the tokens of a step while it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[int], None]

_WATCHER: ContextVar[Watcher | None] = ContextVar("ppl_llm_watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have a function called after each token with the number of sequences that continue."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def tell_alive(number: int) -> None:
    """Tell the watcher, should there be one."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(number)
