"""The methods as a table of the documentation."""

from __future__ import annotations

from .registry import METHODS


def markdown_table() -> str:
    """A row for each method: name, algorithm, options with the defaults of ``solve``, and what a budget of B means in ``evaluate``."""
    rows = ["| `--method` | algorithm | options of `solve` | a budget of B completions in `evaluate` |", "|---|---|---|---|"]
    for method in METHODS.values():
        options = ", ".join(f"`{o.name}`" if o.default is None else f"`{o.name}={_text(o.default)}`" for o in method.options)
        budget = "" if method.budget is None else method.budget.line
        settable = [] if method.budget is None else [*(o.name for o in method.budget.extra), *method.budget.free]
        budget += f"; sets {', '.join(f'`{name}`' for name in settable)}" if settable else ""
        solves = options if method.build is not None else "(not in `solve`)"
        rows.append(f"| `{method.name}` | [{method.algorithm}](#{method.algorithm.lower()}) | {solves} | {budget} |")
    return "\n".join(rows)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
