"""Import circles of a package, type-only and function-level imports included.

``python -m tests.helpers.import_circles`` prints those of ``ppl_llm`` and their number.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "ppl_llm"


class ModuleGraph:
    """Which module imports which.

    ``from package import name`` leads to the module that defines ``name``, through re-exports of ``__init__`` files and their tables of
    lazily imported names. The implied import of parent packages is none of these: every submodule would form a circle with an ``__init__``
    that re-exports it.

    :param Path root: the folder of the package; symbolic links are followed under their own names.
    :param excluded: modules without a node.
    """

    def __init__(self, root: Path, excluded: frozenset[str] = frozenset()) -> None:
        self._trees: dict[str, ast.Module] = {}
        self._packages: set[str] = set()
        for path, name in _modules(root, root.name):
            self._trees[name] = ast.parse(path.read_text(encoding="utf-8"))
            if path.name == "__init__.py":
                self._packages.add(name)
        self._exports = {name: dict(self._exported(name)) for name in self._packages}
        self.edges = {
            name: {target for target, _ in self._imports(name)} - {name} - excluded for name in self._trees if name not in excluded
        }

    def circles(self) -> list[list[str]]:
        """Strongly connected components of more than one module (Tarjan, 1972)."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[list[str]] = []

        def visit(name: str) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            for target in sorted(self.edges[name]):
                if target not in index:
                    visit(target)
                    low[name] = min(low[name], low[target])
                elif target in stack:
                    low[name] = min(low[name], index[target])
            if low[name] == index[name]:
                at = stack.index(name)
                component = sorted(stack[at:])
                del stack[at:]
                if len(component) > 1:
                    found.append(component)

        for name in sorted(self.edges):
            if name not in index:
                visit(name)
        return sorted(found)

    def _imports(self, module: str) -> Iterator[tuple[str, str]]:
        """Pairs of an imported module and the name that it is bound to."""
        for node in ast.walk(self._trees[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self._trees:
                        yield alias.name, alias.asname or alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                for alias in node.names:
                    target = self._defining(base, alias.name)
                    if target is not None:
                        yield target, alias.asname or alias.name

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = module.split(".")
        package = parts if module in self._packages else parts[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *(node.module or "").split(".")]).rstrip(".")

    def _defining(self, base: str, name: str) -> str | None:
        seen: set[tuple[str, str]] = set()
        while (base, name) not in seen:
            seen.add((base, name))
            if f"{base}.{name}" in self._trees and name not in self._exports.get(base, {}):
                return f"{base}.{name}"
            exported = self._exports.get(base, {}).get(name)
            if exported is None:
                break
            base, name = exported
        if f"{base}.{name}" in self._trees:
            return f"{base}.{name}"
        return base if base in self._trees else None

    def _exported(self, package: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """Names that an ``__init__`` imports, and where from."""
        for node in ast.walk(self._trees[package]):
            if isinstance(node, ast.ImportFrom):
                base = self._base(package, node)
                for alias in node.names:
                    if f"{base}.{alias.name}" not in self._trees or base != package:
                        yield alias.asname or alias.name, (base, alias.name)


def _modules(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _modules(path, f"{name}.{path.name}")
        elif path.suffix == ".py":
            yield path, name if path.name == "__init__.py" else f"{name}.{path.stem}"


def circles() -> list[list[str]]:
    """Those of ``ppl_llm``; its ``__init__`` is a table of names that are imported on first use, and nothing imports it."""
    return ModuleGraph(ROOT, frozenset({"ppl_llm"})).circles()


if __name__ == "__main__":
    found = circles()
    for component in found:
        print(*component, sep="\n  ")
    print(len(found), "import circles")
