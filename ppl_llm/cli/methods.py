"""``ppl-llm methods``: the methods of the registry."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from ..methods import IN_PYTHON_ONLY, METHODS
from .console import output_console


def methods() -> None:
    """List the inference methods of solve and evaluate with a line each."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, method in METHODS.items():
        table.add_row(Text(name, style="bold"), Text(method.line))
    console = output_console()
    console.print(table)
    python = ", ".join(f"{algorithm} ({why})" for algorithm, why in IN_PYTHON_ONLY.items())
    console.print(Text(f"In Python only: {python}.", style="dim"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(methods)
