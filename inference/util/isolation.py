"""Running a program inside a handler of another run of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK


@contextmanager
def isolated() -> Iterator[None]:
    """As if no handler and no plate were active. Pyro keeps both in one list each for the whole process."""
    handlers, plates = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = plates
