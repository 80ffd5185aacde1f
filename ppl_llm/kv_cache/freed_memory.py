"""Memory that was freed, given back to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Ask the C library for what it keeps of freed memory, some ten milliseconds.

    Keys and values of ever other sizes leave holes that glibc neither fills nor returns: over half an hour of an evaluation the resident
    memory would grow by a tenth (``benchmarks/soak.py``).
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's, ``None`` elsewhere."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none that has a name
        return None
    return trim
