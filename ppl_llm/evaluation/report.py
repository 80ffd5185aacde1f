"""A run's report: tables as text, figures as files, all in one HTML file that opens without a network."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from . import figures
from .metrics import Interval, bootstrap
from .records import CONFIGURATION
from .results import OFFLINE, Results, known_mean
from .work import SHARED

Rows = list[list[str]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e8ee; } th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; } code { background: #f3f5f7; padding: 0 .25rem; }
.note { color: #5a6775; font-size: .9rem; } .scroll { overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { background: #fff; } }
"""


def accuracy_rows(results: Results) -> Rows:
    """Method by budget."""
    budgets = sorted({budget for method in results.methods for budget in results.budgets(method)})
    rows = [["accuracy", *map(str, budgets)]]
    for method in results.methods:
        own = results.budgets(method)
        rows.append([method, *(str(results.accuracy(method, budget)) if budget in own else "" for budget in budgets)])
    return rows


def offline_rows(results: Results) -> Rows:
    """Votes over the same independent samples, by budget."""
    budgets = results.budgets(SHARED)
    rows = [["vote over the same samples", *map(str, budgets)]]
    for vote in OFFLINE:
        rows.append([vote, *(str(bootstrap(results.offline(vote, budget), known_mean)) for budget in budgets)])
    return rows


def ratio_rows(results: Results) -> Rows:
    """Budget that a baseline needs for the accuracy of a method, in multiples of the method's own."""
    rows = [["budget of the baseline / budget of the method", *results.methods]]
    for method in results.methods:
        cells = [_ratio(results.scaling_ratio(method, baseline)) if baseline != method else "" for baseline in results.methods]
        rows.append([method, *cells])
    return rows


def difference_rows(results: Results, baseline: str) -> Rows:
    """Accuracy of each method minus that of a baseline, at each budget that both have."""
    budgets = results.budgets(baseline)
    rows = [[f"minus {baseline}", *map(str, budgets)]]
    for method in results.methods:
        if method != baseline:
            own = results.budgets(method)
            rows.append([method, *(_signed(results.difference((method, b), (baseline, b))) if b in own else "" for b in budgets)])
    return rows


def cost_rows(results: Results) -> Rows:
    """Mean cost per problem of each method at its largest budget."""
    counters = sorted({name for cells in results.by_key.values() for record in cells.values() for name in record["cost"]})
    rows = [["cost per problem", "budget", *(name.replace("_", " ") for name in counters)]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        rows.append([method, str(budget), *(_number(results.mean_cost(method, budget, name)) for name in counters)])
    return rows


def as_text(rows: Rows) -> str:
    """A Markdown table."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def tables(results: Results) -> list[tuple[str, Rows]]:
    """Titles and tables of a report."""
    found = [("Accuracy against budget, with 95 % bootstrap intervals over problems and seeds", accuracy_rows(results))]
    if SHARED in results.methods and len(results.methods) > 1:
        found.append(("Paired difference to the same number of independent weighted samples", difference_rows(results, SHARED)))
    if len(results.methods) > 1:
        found.append(("How many times the budget a baseline (column) needs for the accuracy of a method (row)", ratio_rows(results)))
    if results.samples:
        found.append(("Votes recomputed from the independent samples", offline_rows(results)))
    found.append(("Cost", cost_rows(results)))
    return found


def write(folder: str | Path) -> Path:
    """Write ``report.html`` and the figures (SVG and PNG) into a run's folder.

    :returns: path of the HTML file.
    :raises FileNotFoundError: if the folder holds no records.
    :raises ImportError: without matplotlib, naming the extra.
    """
    folder = Path(folder)
    results = Results.read(folder)
    drawn = {"Accuracy against generations": figures.scaling(results)}
    if any("tokens_sampled" in record["cost"] for cells in results.by_key.values() for record in cells.values()):
        drawn["Accuracy against tokens"] = figures.scaling(results, "tokens_sampled")
    if len(set(results.levels.values())) > 1:
        drawn["Accuracy by level"] = figures.levels(results)
    if results.samples:
        drawn["Coverage"] = figures.coverage(results)
    drawn["Calibration"] = figures.calibration(results)
    parts = []
    for title, plot in drawn.items():
        name = title.lower().replace(" ", "-")
        for kind in ("png", "svg"):
            plot.savefig(folder / f"{name}.{kind}", dpi=160)
        text = io.StringIO()
        plot.savefig(text, format="svg", metadata={"Date": None})
        inline = text.getvalue()
        parts.append(f"<h2>{html.escape(title)}</h2><figure>{inline[inline.index('<svg') :]}</figure>")
    parts += [f"<h2>{html.escape(title)}</h2>{_html_table(rows)}" for title, rows in tables(results)]
    path = folder / "report.html"
    path.write_text(_page(folder, results, parts), encoding="utf-8")
    return path


def _page(folder: Path, results: Results, parts: Sequence[str]) -> str:
    configuration = json.loads((folder / CONFIGURATION).read_text()) if (folder / CONFIGURATION).exists() else {}
    settings = _html_table([["setting", "value"], *([name, json.dumps(value)] for name, value in configuration.items())])
    count = f"{len(results.problems)} problems, {len(results.seeds)} seeds"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>ppl-llm: {html.escape(folder.name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(folder.name)}</h1><p>{count}.</p>{''.join(parts)}<h2>Settings</h2>{settings}</body></html>"
    )


def _html_table(rows: Rows) -> str:
    head, *body = rows
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{rest}</tbody></table></div>'


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _ratio(interval: Interval) -> str:
    return "no overlap" if math.isnan(interval.value) else f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
