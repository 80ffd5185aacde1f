"""Every file of mutants. Importing this enters all of them in the table."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

MODULES = tuple(
    import_module(f"tests.helpers.{file.stem}")
    for file in sorted(Path(__file__).parent.glob("*mutants.py"))
    if file.stem != "program_mutants"  # which has cases of them
)
