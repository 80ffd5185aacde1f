"""The console that tables are printed on."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 120


def output_console() -> Console:
    """As wide as the terminal, or wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH)
