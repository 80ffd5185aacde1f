"""No module imports itself through others, not even for a type or inside a function."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.import_circles import ModuleGraph, circles


def made(folder: Path, files: dict[str, str]) -> ModuleGraph:
    for name, text in files.items():
        path = folder / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return ModuleGraph(folder / "pack")


def test_the_package_has_no_import_circle() -> None:
    assert circles() == []


def test_the_graph_is_that_of_the_package() -> None:
    graph = ModuleGraph(Path(__file__).parents[1] / "ppl_llm", frozenset({"ppl_llm"}))
    assert "ppl_llm" not in graph.edges
    assert "ppl_llm.lm.base" in graph.edges["ppl_llm.distributions.llm_step"]  # beyond a symbolic link
    assert "ppl_llm.context" in graph.edges["ppl_llm.lm.base"]
    assert "ppl_llm.lm.transformers_lm" in graph.edges["ppl_llm.cli.loading"]  # imported for types and inside a function
    assert not {name for name in graph.edges["ppl_llm.context"] if name.startswith("ppl_llm.lm")}


EMPTY = {"__init__.py": "", "sub/__init__.py": ""}


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from .b import x", "b.py": "import pack.a"},
        {"a.py": "from .b import x", "b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y"},
        {"a.py": "from .b import x", "b.py": "def f():\n    from pack import a"},
        {"a.py": "from .sub import c", "sub/c.py": "from ..a import y", "b.py": ""},
        # Through what an __init__ gives on, under another name.
        {"a.py": "from .sub import K", "sub/__init__.py": "from .c import C as K", "sub/c.py": "from ..a import y"},
        {
            "a.py": "from .sub import C",
            "sub/__init__.py": "from ..b import C",
            "b.py": "from .sub.c import C",
            "sub/c.py": "from .. import a",
        },
    ],
    ids=["plain", "for a type", "in a function", "submodule", "renamed", "over two packages"],
)
def test_circles_are_found(tmp_path: Path, files: dict[str, str]) -> None:
    [component] = made(tmp_path, EMPTY | files).circles()
    assert "pack.a" in component and len(component) >= 2


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from .b import x", "b.py": "import os"},
        # A package that gives on what its own modules define, one of which imports another by way of the package.
        {"sub/__init__.py": "from .c import C\nfrom .d import D", "sub/c.py": "", "sub/d.py": "from . import C"},
        {
            "a.py": "from .sub import D",
            "sub/__init__.py": "from .c import C\nfrom .d import D",
            "sub/c.py": "from ..a import y",
            "sub/d.py": "",
        },
    ],
    ids=["chain", "package", "another name of the same package"],
)
def test_circles_are_not_invented(tmp_path: Path, files: dict[str, str]) -> None:
    assert made(tmp_path, EMPTY | files).circles() == []


def test_excluded_modules_have_no_node(tmp_path: Path) -> None:
    made(tmp_path, {"__init__.py": "from .a import x", "a.py": "from . import y"})
    assert ModuleGraph(tmp_path / "pack").circles() == [["pack", "pack.a"]]
    assert ModuleGraph(tmp_path / "pack", frozenset({"pack"})).circles() == []
