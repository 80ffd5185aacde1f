"""The page of a run: where ``solve --html`` puts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inference import ParticlePosterior


def check(path: Path) -> None:
    """Before the run, which may be long.

    :raises ValueError: if the page could not be written there.
    """
    was_there = path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ValueError(f"--html {path}: {error.strerror}; give a file in a folder that exists and can be written to") from error
    if not was_there:
        path.unlink()


def write(posterior: ParticlePosterior, path: Path, method: str) -> None:
    """
    :raises ValueError: for a run too large to draw; its results are printed by then.
    :raises OSError: if the page cannot be written any more.
    """
    posterior.to_html(path, title=f"ppl-llm solve, {method}")
