"""What the shell offers for the values of options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import scandir

from ..methods.options import PRESET_NAMES

LMS = ("demo",)
PRMS = ("demo", "demo-weak")
PRESETS = PRESET_NAMES


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Complete one of the names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def several(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Complete the last of several names that are separated by commas; none is offered twice."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        return [",".join([*before, name]) for name in names if name.startswith(last) and name not in before]

    return complete


def model(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Complete the name of a model in this package, or a directory."""

    def complete(incomplete: str) -> list[str]:
        folder, slash, last = incomplete.rpartition("/")
        try:
            entries = sorted(e.name for e in scandir((folder + slash) or ".") if e.is_dir() and e.name.startswith(last))
        except OSError:
            entries = []
        named = [name for name in names if name.startswith(incomplete)]
        return [*named, *(f"{folder}{slash}{entry}" for entry in entries if not entry.startswith("."))]

    return complete
