"""Figures of a run, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .methods import METHODS
from .metrics import fit_coverage, reliability
from .results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#6a4c93", "#3d5a80", "#8d6e63", "#00897b", "#ad1457", "#546e7a")
_MARKERS = "osD^vP*Xhp"


def figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Any]:
    """An empty figure with one pair of axes.

    :raises ImportError: without matplotlib, naming the extra.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'ppl-llm[plots]'") from error
    drawn = Canvas(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return drawn, axes


def _style(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5, "linewidth": 1.6}


def _legend_beside(drawn: Figure) -> None:
    drawn.legend(loc="outside right upper", frameon=False, fontsize=8)


def scaling(results: Results, against: str = "budget") -> Figure:
    """Accuracy of every method against its budget, or against a cost counter such as ``tokens_sampled``, with 95 % intervals."""
    drawn, axes = figure()
    for i, method in enumerate(results.methods):
        budgets = results.budgets(method)
        bars = [results.accuracy(method, budget) for budget in budgets]
        x = budgets if against == "budget" else [results.mean_cost(method, budget, against) for budget in budgets]
        shift = 1 + 0.015 * (i - len(results.methods) / 2)  # so that intervals do not hide one another
        places = [value * shift for value in x]
        axes.plot(places, [bar.value for bar in bars], label=method, **_style(i))
        axes.vlines(places, [bar.low for bar in bars], [bar.high for bar in bars], color=_style(i)["color"], alpha=0.35)
    axes.set_xscale("log", base=2)
    if against == "budget":
        ticks = sorted({budget for method in results.methods for budget in results.budgets(method)})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel("generations per problem" if against == "budget" else f"{against.replace('_', ' ')} per problem")
    axes.set_ylabel("accuracy")
    _legend_beside(drawn)
    return drawn


def levels(results: Results) -> Figure:
    """Accuracy by level, every method at its largest budget."""
    names = sorted(set(results.levels.values()), key=str)
    drawn, axes = figure()
    width = 0.8 / max(1, len(results.methods))
    for i, method in enumerate(results.methods):
        budget = results.budgets(method)[-1]
        heights = [results.accuracy(method, budget, [p for p, level in results.levels.items() if level == name]).value for name in names]
        offset = (i - (len(results.methods) - 1) / 2) * width
        axes.bar(np.arange(len(names)) + offset, heights, width, label=f"{method}, {budget}", color=_style(i)["color"])
    axes.set_xticks(range(len(names)), [str(name) for name in names])
    axes.set_xlabel("level")
    axes.set_ylabel("accuracy")
    _legend_beside(drawn)
    return drawn


def coverage(results: Results) -> Figure:
    """pass@k of the independent samples with the fitted power law."""
    most = max(len(pool) for pool in results.samples.values())
    ks = [2**i for i in range(int(math.log2(most)) + 1)]
    values = results.coverage(ks)
    drawn, axes = figure()
    axes.plot(ks, values, label="pass@k", **_style(0))
    try:
        law = fit_coverage(ks, values)
    except ValueError:
        pass
    else:
        fine = np.geomspace(1, most, 100)
        axes.plot(fine, law(fine), color=_COLOURS[1], linestyle="--", label=f"exp(-{law.scale:.2f} k^-{law.exponent:.2f})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel("some sample is right")
    axes.legend(frameon=False, fontsize=8)
    return drawn


def calibration(results: Results) -> Figure:
    """Reliability of the posterior probability of the answer given, for the methods that estimate a posterior."""
    drawn, axes = figure(6.0, 4.2)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for i, method in enumerate(results.methods):
        if method not in METHODS or METHODS[method].vote not in ("posterior", "preset"):
            continue
        cells = results.by_key[method, results.budgets(method)[-1]].values()
        stated = [(record["answers"].get(str(record["answer"]), 0.0), record["correct"]) for record in cells if "answers" in record]
        if stated:
            bins = reliability([p for p, _ in stated], [c for _, c in stated], 8)
            axes.plot([b.confidence for b in bins], [b.frequency for b in bins], label=method, **_style(i))
    axes.set_xlabel("posterior probability of the answer")
    axes.set_ylabel("how often it is right")
    _legend_beside(drawn)
    return drawn
