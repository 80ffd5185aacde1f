"""The first seconds of a command, which go into imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_own = False
"""Whether the process is that of a command, and nobody else's objects are in it."""


def begin() -> None:
    """The process is that of a command."""
    global _own
    _own = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports leave 670,000 objects that stay. Python's collector would go through all of them time and again, for a sixth of the time of
    start-up, and once more at the end: it is off meanwhile, and leaves alone what is there afterwards. Only in a command's own process.
    """
    if not _own or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
