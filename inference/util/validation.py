"""Checks of arguments that algorithms share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    :raises ValueError: if ``value`` is not an integer of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_optional_count(name: str, value: Any, least: int = 1) -> None:
    """
    :raises ValueError: if ``value`` is neither ``None`` nor an integer of at least ``least``.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be None or an integer of at least {least}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """
    :raises ValueError: if ``value`` is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """
    :raises ValueError: if ``value`` is not a number between the bounds, which are left out.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{name} must be a number between {low:g} and {high:g}, got {value!r}")


def check_function(name: str, value: Any) -> None:
    """
    :raises ValueError: if it is given and cannot be called.
    """
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function or None, got {value!r}")


def check_particles(num_particles: int, ess_threshold: float, max_plate_nesting: int) -> None:
    """The numbers that all particle algorithms share.

    :raises ValueError: for one out of range, naming its value.
    """
    check_count("num_particles", num_particles)
    if not isinstance(ess_threshold, int | float) or not 0.0 <= ess_threshold <= 1.0:
        raise ValueError(f"ess_threshold must lie in [0, 1] (0 never resamples, 1 at every barrier), got {ess_threshold!r}")
    check_count("max_plate_nesting", max_plate_nesting, 0)


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> ValueError:
    """An error that names the value, the nearest known name, and all of them.

    :param str kind: what the name should have been, e.g. ``resampler``.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
