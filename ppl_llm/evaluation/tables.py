"""What a run's records say, as rows of text."""

from __future__ import annotations

import math

from .diagnostics import CALIBRATION_HEAD, Coverage, Selection, Stated, with_posterior
from .intervals import Interval, bootstrap
from .page import Rows
from .results import OFFLINE, Results
from .work import SHARED


def accuracy_rows(results: Results) -> Rows:
    """Method by budget."""
    budgets = all_budgets(results)
    rows = [["accuracy", *map(str, budgets)]]
    for method in results.methods:
        own = results.budgets(method)
        rows.append([method, *(str(results.accuracy(method, budget)) if budget in own else "" for budget in budgets)])
    return rows


def expected_rows(results: Results) -> Rows:
    """Accuracy of one draw from the posterior, method by budget."""
    budgets = all_budgets(results)
    rows = [["accuracy of one draw", *map(str, budgets)]]
    for method in with_posterior(results):
        own = results.budgets(method)
        rows.append([method, *(str(results.expected_accuracy(method, budget)) if budget in own else "" for budget in budgets)])
    return rows


def offline_rows(results: Results) -> Rows:
    """Votes over the same independent samples, by budget; those whose scores the run has not recorded are left out."""
    budgets = results.budgets(SHARED)
    rows = [["vote over the same samples", *map(str, budgets)]]
    for vote in OFFLINE:
        cells = [bootstrap(results.offline(vote, budget)) for budget in budgets]
        if any(not math.isnan(cell.value) for cell in cells):
            rows.append([vote, *map(interval, cells)])
    return rows


def ratio_rows(results: Results) -> Rows:
    """Budget that a baseline needs for the accuracy of a method, in multiples of the method's own."""
    rows = [["method, baseline:", *results.methods]]
    for method in results.methods:
        cells = [ratio(results.scaling_ratio(method, baseline)) if baseline != method else "" for baseline in results.methods]
        rows.append([method, *cells])
    return rows


def difference_rows(results: Results, baseline: str) -> Rows:
    """Accuracy of each method minus that of a baseline, at each budget that both have."""
    budgets = results.budgets(baseline)
    rows = [[f"minus {baseline}", *map(str, budgets)]]
    for method in results.methods:
        if method != baseline:
            own = results.budgets(method)
            rows.append([method, *(signed(results.difference((method, b), (baseline, b))) if b in own else "" for b in budgets)])
    return rows


def level_rows(results: Results) -> Rows:
    """Accuracy by level, every method at its largest budget."""
    names = sorted(set(results.levels.values()), key=str)
    members = [[problem for problem, level in results.levels.items() if level == name] for name in names]
    rows = [["method, budget", *(f"level {name} ({len(own)})" for name, own in zip(names, members, strict=True))]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        rows.append([f"{method}, {budget}", *(interval(results.accuracy(method, budget, own)) for own in members)])
    return rows


def cost_rows(results: Results) -> Rows:
    """Mean cost per problem of each method at its largest budget."""
    counters = sorted({name for cells in results.by_key.values() for record in cells.values() for name in record["cost"]})
    rows = [["cost per problem", "budget", *(name.replace("_", " ") for name in counters)]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        rows.append([method, str(budget), *(_number(results.mean_cost(method, budget, name)) for name in counters)])
    return rows


def coverage_rows(found: Coverage) -> Rows:
    """pass@k and maj@k, and what the power law makes of pass@k."""
    rows = [["k", *map(str, found.ks)], ["pass@k", *map(interval, found.passed)], ["maj@k", *map(interval, found.voted)]]
    if found.law is not None:
        rows.append(["fitted law", *(f"{value:.3f}" for value in found.law(found.ks))])
    return rows


def selection_rows(found: dict[str, list[Selection]], ks: list[int]) -> Rows:
    """False positives by score and number of samples."""
    rows = [["score, samples", *map(str, ks)]]
    for name, picked in found.items():
        rows.append([f"{name}: wrong among the accepted", *(interval(one.false_positive) for one in picked)])
        rows.append([f"{name}: accepted", *(interval(one.accepted) for one in picked)])
        rows.append([f"{name}: wrong among all picked", *(interval(one.wrong) for one in picked)])
    return rows


def calibration_rows(statements: list[Stated]) -> Rows:
    """Brier score, expected calibration error and AUROC."""
    return [CALIBRATION_HEAD, *(stated.row() for stated in statements)]


def all_budgets(results: Results) -> list[int]:
    """Of any method."""
    return sorted({budget for method in results.methods for budget in results.budgets(method)})


def as_text(rows: Rows) -> str:
    """A Markdown table."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def interval(value: Interval) -> str:
    """Empty where nothing is known."""
    return "" if math.isnan(value.value) else str(value)


def signed(value: Interval) -> str:
    """A difference; empty where nothing is known."""
    return "" if math.isnan(value.value) else f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def ratio(value: Interval) -> str:
    """A ratio of budgets."""
    return "no overlap" if math.isnan(value.value) else f"{value.value:.1f} [{value.low:.1f}, {value.high:.1f}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
