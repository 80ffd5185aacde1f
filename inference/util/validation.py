"""Checks of arguments that algorithms share."""

from __future__ import annotations

from typing import Any


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    :raises ValueError: if ``value`` is not an integer of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_particles(model: Any, num_particles: int, ess_threshold: float, max_plate_nesting: int) -> None:
    """The arguments that all particle algorithms share.

    :raises ValueError: for one out of range, naming its value.
    """
    if not callable(model):
        raise ValueError(f"model must be a function with pyro.sample sites, got {model!r}")
    check_count("num_particles", num_particles)
    if not 0.0 <= ess_threshold <= 1.0:
        raise ValueError(f"ess_threshold must lie in [0, 1] (0 never resamples, 1 at every barrier), got {ess_threshold!r}")
    check_count("max_plate_nesting", max_plate_nesting, 0)
