"""Figures of accuracy: against budget and tokens, by level, coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..inference.util.validation import unknown_name
from .drawing import COLOURS, figure, legend_beside, powers_of_two, style
from .metrics import Accuracies, PowerLaw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")


def scaling(results: Accuracies | Mapping[str, Accuracies], against: str = "budget") -> Figure:
    """Accuracy of every method against its budget, or against a cost counter such as ``tokens_sampled``, with 95 % intervals.

    :param results: of one run, or of several by name; the same method has the same colour, and each run dashes of its own; methods that
        not all of them have are left out, unless there are no others. With one run, dashes tell methods of one colour apart.
    :param str against: ``budget``, or a counter of the records' cost.
    :raises ValueError: for a counter that no record has.
    """
    runs = {"": results} if isinstance(results, Accuracies) else dict(results)
    costs = [record["cost"] for run in runs.values() for cells in run.by_key.values() for record in cells.values()]
    known = ("budget", *sorted(set().union(*costs)))
    if against not in known:
        raise unknown_name("against", against, known)
    methods = list(dict.fromkeys(method for run in runs.values() for method in run.methods))
    common = [method for method in methods if all(method in run.methods for run in runs.values())] or methods
    lines = [(name, run, method) for name, run in runs.items() for method in run.methods if method in common]
    drawn, axes = figure(7.6 if len(runs) > 1 else 7.0)
    for i, (name, run, method) in enumerate(lines):
        budgets = run.budgets(method)
        bars = [run.accuracy(method, budget) for budget in budgets]
        x = budgets if against == "budget" else [run.mean_cost(method, budget, against) for budget in budgets]
        shift = 1 + 0.015 * (i - len(lines) / 2)  # so that intervals do not hide one another
        places = [value * shift for value in x]
        look = style(methods.index(method))
        kind = list(runs).index(name) if len(runs) > 1 else methods.index(method) // len(COLOURS)
        dashes = _DASHES[kind % len(_DASHES)]
        axes.plot(places, [bar.value for bar in bars], label=f"{method}, {name}" if name else method, linestyle=dashes, **look)
        axes.vlines(places, [bar.low for bar in bars], [bar.high for bar in bars], color=look["color"], alpha=0.45)
    if against == "budget":
        powers_of_two(axes, sorted({budget for _, run, method in lines for budget in run.budgets(method)}))
    else:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("completions per problem" if against == "budget" else f"{against.replace('_', ' ')} per problem")
    axes.set_ylabel("accuracy")
    legend_beside(drawn)
    return drawn


def levels(results: Accuracies) -> Figure:
    """Accuracy by level, every method at its largest budget."""
    names = sorted(set(results.levels.values()), key=str)
    drawn, axes = figure()
    width = 0.8 / max(1, len(results.methods))
    for i, method in enumerate(results.methods):
        budget = results.budgets(method)[-1]
        heights = [results.accuracy(method, budget, [p for p, level in results.levels.items() if level == name]).value for name in names]
        offset = (i - (len(results.methods) - 1) / 2) * width
        axes.bar(np.arange(len(names)) + offset, heights, width, label=f"{method}, {budget}", color=style(i)["color"])
    axes.set_xticks(range(len(names)), [str(name) for name in names])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("level")
    axes.set_ylabel("accuracy")
    legend_beside(drawn)
    return drawn


def coverage(ks: list[int], values: list[float], votes: list[float], power_law: PowerLaw | None) -> Figure:
    """pass@k of the independent samples with the fitted power law, and a majority vote among as many.

    :param votes: maj@k.
    """
    drawn, axes = figure()
    axes.plot(ks, values, label="pass@k", **style(0))
    axes.plot(ks, votes, label="maj@k", **style(2))
    if power_law is not None:
        fine = np.geomspace(1, max(ks), 100)
        label = f"exp(-{power_law.scale:.2f} k^-{power_law.exponent:.2f})"
        axes.plot(fine, power_law(fine), color=COLOURS[1], linestyle="--", label=label)
    powers_of_two(axes, ks)
    axes.set_xlabel("k samples")
    axes.set_ylabel("share of problems")
    legend_beside(drawn)
    return drawn


def effective_sample_size(results: Accuracies) -> Figure:
    """Mean of ESS / particles at each step, every filter at its largest budget; the band holds eight of ten problems."""
    drawn, axes = figure()
    for i, (method, budget) in enumerate(with_ess(results)):
        traces = [[e / r["num_samples"] for e in r["ess"]] for r in results.by_key[method, budget].values() if r.get("ess")]
        table = np.full((len(traces), max(map(len, traces))), math.nan)
        for row, trace in zip(table, traces, strict=True):
            row[: len(trace)] = trace
        steps = np.arange(1, table.shape[1] + 1)
        axes.plot(steps, np.nanmean(table, 0), label=f"{method}, {budget}", **style(i))
        axes.fill_between(steps, *np.nanquantile(table, [0.1, 0.9], axis=0), color=style(i)["color"], alpha=0.2, linewidth=0)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("step")
    axes.set_ylabel("effective sample size / particles")
    legend_beside(drawn)
    return drawn


def with_ess(results: Accuracies) -> list[tuple[str, int]]:
    """Methods, at their largest budgets, whose records have a trace of the effective sample size."""
    largest = [(method, results.budgets(method)[-1]) for method in results.methods]
    return [key for key in largest if any(record.get("ess") for record in results.by_key[key].values())]
