"""The figures of the document, from the outcomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppl_llm.evaluation.drawing import COLOURS, figure, legend_beside, powers_of_two, style
from ppl_llm.evaluation.figures import scaling

from . import later_tables
from .tables import KINDS, Study, main_results, map_results, map_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(study: Study, setting: str) -> Figure:
    """Accuracy of every method against its budget."""
    return scaling(main_results(study, setting))


def later(study: Study) -> Figure:
    """Accuracy of later methods against tokens, with the strong reward model."""
    return scaling(later_tables.results(study, "strong", later_tables.DRAWN), "tokens_sampled")


def winners(study: Study) -> Figure:
    """What the reward model states of the sample that best-of-N chooses, and how often it is right."""
    drawn, axes = figure()
    for i, setting in enumerate(("strong", "weak")):
        own = study[setting]
        budgets = own.results.budgets("best-of-n")
        stated = [np.nanmean([own.claims[b, s] for b, s in own.claims if b == budget]) for budget in budgets]
        right = [own.results.accuracy("best-of-n", budget).value for budget in budgets]
        look = {**style(i), "color": COLOURS[i]}
        axes.plot(budgets, stated, label=f"{setting}: stated", linestyle="--", **look)
        axes.plot(budgets, right, label=f"{setting}: right", **look)
    powers_of_two(axes, budgets)
    axes.set_xlabel("N")
    axes.set_ylabel("probability that the best of N is right")
    legend_beside(drawn)
    return drawn


def error_map(study: Study, budget: int = 64) -> Figure:
    """Accuracy of each method minus that of self-consistency, for each kind of reward model."""
    names = list(KINDS.values())[1:]
    settings = map_settings(study)
    gain = np.full((len(settings), len(names)), np.nan)
    for row, setting in enumerate(settings):
        results = map_results(study, setting)
        base = results.accuracy("self-consistency", budget).value
        for column, name in enumerate(names):
            if (name, budget) in results.by_key:
                gain[row, column] = results.accuracy(name, budget).value - base
    drawn, axes = figure(8.0, 0.32 * len(settings) + 1.6)
    axes.grid(False)
    image = axes.imshow(gain, cmap="RdBu", vmin=-0.4, vmax=0.4, aspect="auto")
    for (row, column), value in np.ndenumerate(gain):
        if not np.isnan(value):
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.28 else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(settings)), settings, fontsize=8)
    drawn.colorbar(image, label=f"accuracy at {budget} minus self-consistency")
    return drawn


FIGURES: dict[str, Callable[[Study], Figure]] = {
    "strong": lambda study: curves(study, "strong"),
    "weak": lambda study: curves(study, "weak"),
    "winners": winners,
    "map": error_map,
    "later": later,
}
"""By the name of their files."""


def draw(study: Study, folder: Path, only: str | None = None) -> None:
    """Write SVG files.

    :raises ImportError: without matplotlib, naming the extra.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "study"}):  # the same file for the same outcomes
        for name, drawing in FIGURES.items():
            if only in (None, name):
                drawing(study).savefig(folder / f"{name}.svg", metadata={"Date": None})
