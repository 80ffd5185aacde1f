"""No two files of the evaluation need each other, not even for a type or inside a function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ppl_llm.evaluation

FOLDER = Path(ppl_llm.evaluation.__file__).parent


def needed(text: str, names: set[str]) -> set[str]:
    """Files of the folder that a file imports anywhere: at its top, for type checkers only, or lazily."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found & names


def test_imports_have_no_circle() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    graph = {name: needed((FOLDER / f"{name}.py").read_text(encoding="utf-8"), names) for name in names}
    assert graph["results"] >= {"metrics", "figures"} and "results" not in graph["figures"]
    TopologicalSorter(graph).prepare()


def test_a_lazy_import_makes_a_circle() -> None:
    names = {"results", "figures"}
    lazy = needed("def plot():\n    from .figures import scaling\n", names)
    typed = needed("if TYPE_CHECKING:\n    from . import results\n", names)
    with pytest.raises(CycleError):
        TopologicalSorter({"results": lazy, "figures": typed}).prepare()
