"""What a run's records say, as rows of text. What is over some of the problems only says so: ``n of N problems``."""

from __future__ import annotations

import math

import numpy as np

from .diagnostics import CALIBRATION_HEAD, Coverage, Selection, Stated, labelled, with_posterior
from .intervals import Interval, mean_over_problems, proportion
from .metrics import Accuracies
from .page import Rows
from .results import OFFLINE, Results
from .work import SHARED


def accuracy_rows(results: Results) -> Rows:
    """Method by budget."""
    budgets = all_budgets(results)
    rows = [["accuracy", *map(str, budgets)]]
    for method in results.methods:
        own = results.budgets(method)
        rows.append([method, *(accuracy_cell(results, method, budget) if budget in own else "" for budget in budgets)])
    return rows


def accuracy_cell(results: Accuracies, method: str, budget: int, problems: list[str] | None = None) -> str:
    """Accuracy with its interval; empty where nothing is known."""
    return cell(interval(results.accuracy(method, budget, problems)), results.evaluated((method, budget), problems=problems))


def expected_rows(results: Results) -> Rows:
    """Accuracy of one draw from the posterior, method by budget."""
    budgets = all_budgets(results)
    rows = [["accuracy of one draw", *map(str, budgets)]]
    for method in with_posterior(results):
        own = results.budgets(method)
        cells = [cell(interval(results.expected_accuracy(method, b)), results.evaluated((method, b))) if b in own else "" for b in budgets]
        rows.append([method, *cells])
    return rows


def offline_rows(results: Results) -> Rows:
    """Votes over the same independent samples, by budget; those whose scores the run has not recorded are left out."""
    budgets = results.budgets(SHARED)
    rows = [[labelled("vote over the same samples", results.sampled()), *map(str, budgets)]]
    for vote in OFFLINE:
        cells = [proportion(results.offline(vote, budget)) for budget in budgets]
        if any(not math.isnan(cell.value) for cell in cells):
            rows.append([vote, *map(interval, cells)])
    return rows


def ratio_rows(results: Results) -> Rows:
    """Budget that a baseline needs for the accuracy of a method, in multiples of the method's own."""
    names = [labelled(method, results.least_evaluated(method)) for method in results.methods]
    rows = [["method, baseline:", *names]]
    for method, name in zip(results.methods, names, strict=True):
        cells = [str(results.scaling_ratio(method, baseline)) if baseline != method else "" for baseline in results.methods]
        rows.append([name, *cells])
    return rows


def difference_rows(results: Results, baseline: str) -> Rows:
    """Accuracy of each method minus that of a baseline, at each budget that both have."""
    budgets = results.budgets(baseline)
    rows = [[f"minus {baseline}", *map(str, budgets)]]
    for method in results.methods:
        if method != baseline:
            own = results.budgets(method)
            rows.append([method, *(difference_cell(results, (method, b), (baseline, b)) if b in own else "" for b in budgets)])
    return rows


def difference_cell(results: Accuracies, first: tuple[str, int], second: tuple[str, int]) -> str:
    """The first (method, budget) minus the second, with an interval; empty where nothing is known."""
    return cell(signed(results.difference(first, second)), results.evaluated(first, second))


def level_rows(results: Results) -> Rows:
    """Accuracy by level, every method at its largest budget."""
    names = sorted(set(results.levels.values()), key=str)
    members = [[problem for problem, level in results.levels.items() if level == name] for name in names]
    rows = [["method, budget", *(f"level {name} ({len(own)})" for name, own in zip(names, members, strict=True))]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        rows.append([f"{method}, {budget}", *(accuracy_cell(results, method, budget, own) for own in members)])
    return rows


def cost_rows(results: Results) -> Rows:
    """Mean cost per problem of each method at its largest budget."""
    counters = sorted({name for cells in results.by_key.values() for record in cells.values() for name in record["cost"]})
    rows = [["cost per problem", "budget", *(name.replace("_", " ") for name in counters)]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        name = labelled(method, results.evaluated((method, budget)))
        rows.append([name, str(budget), *(_number(results.mean_cost(method, budget, name)) for name in counters)])
    return rows


def step_rows(results: Results) -> Rows:
    """How solutions fall into steps: of each method with recorded candidates at its largest budget, over solutions that have a step."""
    rows = [
        [
            "steps, budget",
            "solutions",
            "steps per solution",
            "tokens per step",
            "cut by max_tokens",
            "cut by max_tokens_completion",
            "without an answer",
        ]
    ]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        given = [c for record in results.by_key[method, budget].values() for c in record.get("candidates", ())]
        solutions = [c for c in given if c.get("steps")]
        if not solutions:
            continue
        lengths = [length for c in solutions for length in c["steps"]]
        cut = sum(c["cut_steps"] for c in solutions) / len(lengths)
        whole = sum(c.get("cut", False) for c in given) / len(given)
        share = results.without_answer(method, budget)
        cells = [str(len(given)), _spread([len(c["steps"]) for c in solutions]), _spread(lengths), f"{cut:.1%}", f"{whole:.1%}"]
        rows.append([f"{method}, {budget}", *cells, "" if math.isnan(share) else f"{share:.3f}"])
    return rows


def _spread(values: list[int]) -> str:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{np.mean(values):.1f} ({low:.0f}, {middle:.0f}, {high:.0f}; at most {max(values)})"


def stopped_rows(results: Results) -> Rows:
    """Methods that stop by a rule, at each budget: what they took of it, and the saving against the same method without the rule."""
    rows = [["stops by a rule", "budget", "completions drawn", "stopped", "tokens", "tokens saved", "accuracy minus the whole budget's"]]
    for (method, budget), cells in results.by_key.items():
        if not any("drawn" in record for record in cells.values()):
            continue
        fixed = (method.partition(":")[0], budget)
        drawn = mean_over_problems(results.table(method, budget, lambda record: float(record["drawn"])))
        stopped = proportion(results.table(method, budget, lambda record: float(record["stopped"])))
        compared = ["", ""]
        if fixed in results.by_key:
            compared = [interval(results.saving((method, budget), fixed)), difference_cell(results, (method, budget), fixed)]
        tokens = _number(results.mean_cost(method, budget))
        name = labelled(method, results.evaluated((method, budget)))
        rows.append([name, str(budget), f"{drawn:.1f}", interval(stopped), tokens, *compared])
    return rows


def coverage_rows(found: Coverage) -> Rows:
    """pass@k, maj@k and all@k, and what the power law makes of pass@k."""
    rows = [
        [labelled("k", found.missing), *map(str, found.ks)],
        ["pass@k", *map(interval, found.passed)],
        ["maj@k", *map(interval, found.voted)],
        ["all@k", *map(interval, found.every)],
    ]
    if found.power_law is not None:
        rows.append(["fitted power law", *(f"{value:.3f}" for value in found.power_law(found.ks))])
    return rows


def selection_rows(found: dict[str, list[Selection]], ks: list[int], missing: str = "") -> Rows:
    """False positives by score and number of samples.

    :param str missing: ``n of N problems``, where some have no samples.
    """
    rows = [[labelled("score, samples", missing), *map(str, ks)]]
    for name, picked in found.items():
        rows.append([f"{name}: wrong among the accepted", *(interval(one.false_positive) for one in picked)])
        rows.append([f"{name}: accepted", *(interval(one.accepted) for one in picked)])
        rows.append([f"{name}: wrong among all picked", *(interval(one.wrong) for one in picked)])
    return rows


def calibration_rows(statements: list[Stated]) -> Rows:
    """Brier score, expected calibration error, AUROC and AURC."""
    return [CALIBRATION_HEAD, *(stated.row() for stated in statements)]


def all_budgets(results: Results) -> list[int]:
    """Of any method."""
    return sorted({budget for method in results.methods for budget in results.budgets(method)})


def as_text(rows: Rows) -> str:
    """A Markdown table."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def cell(text: str, missing: str) -> str:
    """A cell, with how much it is about where something is missing."""
    return labelled(text, missing) if text else ""


def interval(value: Interval) -> str:
    """Empty where nothing is known."""
    return "" if math.isnan(value.value) else str(value)


def signed(value: Interval) -> str:
    """A difference; empty where nothing is known."""
    return "" if math.isnan(value.value) else f"{round(value.value, 9) + 0.0:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
