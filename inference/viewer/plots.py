"""Figures of a posterior, by matplotlib (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..posterior.discrete_marginal import DiscreteMarginal, pool
from ..posterior.equivalence_classes import Equivalent, representatives
from ..util.validation import check_count
from .canvas import COLOURS, dress, empty, figure, style
from .genealogy import Answer, Genealogy
from .populations import one, plate_index, populations
from .viewable import Viewable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DEAD, _OTHER, _BAND = "#c9d1d9", "#8a94a0", "#eef1f4"
_NAMED = 8
"""Answers with their own colour."""
_WIDEST = 20
"""Largest node, in multiples of one of average weight."""
_LONGEST = 24


def genealogy(
    posterior: Viewable, plate: int | tuple[int, ...] | None, answer: Answer | None, equivalent: Equivalent | None, ax: Axes | None
) -> Figure:
    """See :meth:`~ppl_llm.inference.ParticlePosterior.plot_genealogy`."""
    population = one(posterior, plate, "a genealogy")
    found = Genealogy.of(population, answer=answer, texts=False).trimmed()
    if ax is not None:
        _lines(ax, found, equivalent)
        return _figure_of(ax)
    strips = [found.ess] if found.log_evidence is None else [found.ess, found.log_evidence]
    height = min(8.0, max(2.2, 0.1 * found.num_particles))
    drawn = empty(min(14.0, max(6.5, 0.26 * found.num_columns + 3.0)), height + 0.8 + 0.8 * len(strips))
    grid = drawn.add_gridspec(1 + len(strips), 1, height_ratios=[height, *(0.8 for _ in strips)])
    top = drawn.add_subplot(grid[0])
    _lines(top, found, equivalent)
    below = [dress(drawn.add_subplot(grid[1 + i], sharex=top)) for i in range(len(strips))]
    columns = np.arange(1, found.num_columns + 1)
    below[0].bar(columns, found.ess, 0.6, color=[COLOURS[3] if resampled else _DEAD for resampled in found.resampled.tolist()])
    below[0].set_ylim(0, found.num_particles)
    for axes, values, name in zip(below, strips, ("ESS", "log evidence"), strict=False):
        if values is not found.ess:
            axes.plot(columns, values, color=COLOURS[0], marker="o", markersize=3, linewidth=1.4)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in (top, *below[:-1]):
        axes.tick_params(labelbottom=False, bottom=False)
        axes.set_xlabel("")
    below[-1].set_xlabel("step")
    return drawn


def _lines(axes: Axes, found: Genealogy, equivalent: Equivalent | None) -> None:
    """Lines of descent, with dead branches behind them."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    n, end, rows, alive = found.num_particles, found.num_columns + 1, found.rows, found.alive
    colours, last, legend = _paint(found, equivalent)
    along = np.linspace(0, 1, 12)
    bend = 3 * along**2 - 2 * along**3
    links: list[tuple[bool, str, Any]] = []

    def link(x: int, y: Tensor, to_x: int, to_y: Tensor, lives: bool, colour: str) -> None:
        links.append((lives, colour, np.column_stack([x + (to_x - x) * along, float(y) + (float(to_y) - float(y)) * bend])))

    for c, parents in enumerate(found.parents.tolist(), 1):
        for particle, parent in enumerate(parents):
            link(c, rows[c - 1, parent], c + 1, rows[c, particle], bool(alive[c, particle]), colours[c][particle])
    for i, (c, particle) in enumerate(zip(found.column.tolist(), found.particle.tolist(), strict=True)):
        link(c + 1, rows[c, particle], end, found.last_rows[i], True, last[i])
    for lives, width in ((False, 0.5), (True, 0.9)):
        kept = [(colour, line) for alive_, colour, line in links if alive_ == lives]
        axes.add_collection(
            LineCollection([line for _, line in kept], colors=[colour for colour, _ in kept], linewidths=width, zorder=1 + lives)
        )
    size = 0.35 * min(48.0, 1440.0 / n)
    for c in range(found.num_columns):
        area = size * torch.nan_to_num(found.normalized[c] * n, nan=1.0).clamp(0.05, _WIDEST)
        area = torch.where(found.finished_before[c], 2.0, area)
        for lives in (False, True):
            here = alive[c] == lives
            face = [colour for colour, kept in zip(colours[c], here.tolist(), strict=True) if kept] if lives else "white"
            edge = "none" if lives else _DEAD
            place = torch.full((int(here.sum()),), c + 1), rows[c][here], area[here]
            axes.scatter(*place, c=face, edgecolors=edge, linewidths=0.7, zorder=3 + lives)
    axes.scatter([end] * n, found.last_rows, size * (found.weights * n).clamp(0.05, _WIDEST), c=last, marker="s", zorder=4)
    for c in found.resampled.nonzero().flatten().tolist():
        axes.axvspan(c + 1.3, c + 1.7, color=_BAND, zorder=0, linewidth=0)
    axes.set(xlim=(0.4, end + 0.6), ylim=(n - 0.4, -0.6), yticks=[], xlabel="step", ylabel=f"{n} particles")
    axes.set_xticks(range(1, end, -(-found.num_columns // 20)))
    axes.spines[["top", "right", "left"]].set_visible(False)
    if legend:
        handles = [Line2D([], [], color=colour, marker="o", linewidth=0, label=name) for name, colour in legend]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, title="answer")


def _paint(found: Genealogy, equivalent: Equivalent | None) -> tuple[list[list[str]], list[str], list[tuple[str, str]]]:
    """Colours of each column's particles, by the answer with most of their offspring's weight; of the last particles; a legend."""
    if found.answers is None:
        colours = [[COLOURS[0] if lives else _DEAD for lives in column] for column in found.alive.tolist()]
        return colours, [COLOURS[0]] * found.num_particles, []
    known = DiscreteMarginal(zip(found.answers, found.weights.tolist(), strict=True))
    probs = known.probs if equivalent is None else known.pooled(equivalent).probs
    named = [each for each in probs if each is not None][:_NAMED]
    of_name = {each: COLOURS[i] for i, each in enumerate(named)}
    stands_for = {each: each for each in found.answers} if equivalent is None else representatives(found.answers, equivalent)
    last = [of_name.get(stands_for[each], _OTHER) for each in found.answers]
    palette = [*of_name.values(), _OTHER]
    share = torch.zeros(found.num_columns, found.num_particles, len(palette), dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(torch.tensor([palette.index(colour) for colour in last]), len(palette))
    share.index_put_((found.column, found.particle), one_hot * (found.weights[:, None] + 1e-12), accumulate=True)
    for c in range(found.num_columns - 1, 0, -1):
        share[c - 1].index_add_(0, found.parents[c - 1], share[c])
    leading = share.argmax(-1).tolist()
    colours = [
        [palette[i] if lives else _DEAD for i, lives in zip(column, alive, strict=True)]
        for column, alive in zip(leading, found.alive.tolist(), strict=True)
    ]
    legend = [(_short(each, probs), colour) for each, colour in of_name.items()]
    rest = [each for each in probs if each not in of_name]
    return colours, last, legend + ([(f"{_name(rest[0])}" if len(rest) == 1 else f"{len(rest)} others", _OTHER)] if rest else [])


def answers(
    posterior: Viewable,
    plate: int | tuple[int, ...] | None,
    answer: Answer | None,
    equivalent: Equivalent | None,
    top: int,
    ax: Axes | None,
) -> Figure:
    """See :meth:`~ppl_llm.inference.ParticlePosterior.plot_answers`."""
    check_count("top", top)
    marginal = posterior.answers() if answer is None else posterior.marginal(answer)
    for i in plate_index(posterior, plate):
        marginal = marginal[i]
    probs = pool(marginal, equivalent).probs
    shown = list(probs.items())[:top]
    names = [_name(each) for each, _ in shown]
    heights = [p for _, p in shown]
    if len(probs) > top:
        names.append(f"{len(probs) - top} others")
        heights.append(sum(list(probs.values())[top:]))
    if ax is None:
        _, ax = figure(6.0, 0.8 + 0.32 * len(names))
    places = range(len(names))
    bars = ax.barh(places, heights, 0.7, color=[COLOURS[0] if i < len(shown) else _DEAD for i in places])
    ax.bar_label(bars, [f"{p:.3f}" for p in heights], padding=3, fontsize=8)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel("posterior probability" if posterior.estimates_posterior else "share of the vote")
    ax.grid(False)
    return _figure_of(ax)


def ess(posterior: Viewable, ax: Axes | None) -> Figure:
    """See :meth:`~ppl_llm.inference.ParticlePosterior.plot_ess`."""
    return _by_step(posterior, ax, "effective sample size", lambda found: found.ess, dots=True)


def evidence(posterior: Viewable, ax: Axes | None) -> Figure:
    """See :meth:`~ppl_llm.inference.ParticlePosterior.plot_evidence`."""
    _ = posterior.log_evidence  # an algorithm that gives none says why
    return _by_step(posterior, ax, "log evidence so far", lambda found: found.log_evidence, dots=False)


def _by_step(posterior: Viewable, ax: Axes | None, name: str, values: Callable[[Genealogy], Any], dots: bool) -> Figure:
    shown = populations(posterior)
    if len(shown) > len(COLOURS):
        raise ValueError(
            f"{len(shown)} lines are too many to tell apart (at most {len(COLOURS)}); take a part of them, or plot to_dataframe(steps=True)"
        )
    if ax is None:
        _, ax = figure(6.5, 3.4)
    for i, population in enumerate(shown):
        found = Genealogy.of(population, texts=False)
        steps = np.arange(1, found.num_columns + 1)
        line = style(i) | {"marker": ""}
        ax.plot(steps, values(found), label=population.label, **line)
        if dots:
            ax.plot(steps[found.resampled.numpy()], values(found)[found.resampled], "o", color=line["color"], markersize=5)
    ax.set_xlabel("step")
    ax.set_ylabel(name)
    ax.locator_params(axis="x", integer=True)
    if dots:
        ax.set_ylim(bottom=0)
    if len(shown) > 1:
        ax.legend(frameon=False, fontsize=8)
    return _figure_of(ax)


def _figure_of(ax: Axes) -> Figure:
    drawn = ax.get_figure(root=True)
    assert drawn is not None
    return drawn


def _name(answer: Hashable) -> str:
    text = "no answer" if answer is None else str(answer)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _short(answer: Hashable, probs: dict[Any, float]) -> str:
    return f"{_name(answer)}  {probs[answer]:.2f}"
