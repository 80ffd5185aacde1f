"""Figures in one style, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f7fc1", "#d1495b", "#2e8b57", "#c9780a", "#8b6cb8", "#0f8b8d", "#a0694b", "#7d7f2c", "#c2528b", "#6f7f8c")
"""Each at least three times as bright or as dark as a white and as a nearly black page."""

MARKERS = "osD^vP*Xhp"


def empty(width: float = 7.0, height: float = 4.2) -> Figure:
    """A figure without axes. It shows itself in a notebook, and pyplot does not know of it: nothing to close.

    :raises ImportError: without matplotlib, naming the extra.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'ppl-llm[plots]'") from error

    class Picture(Canvas):
        def _repr_png_(self) -> bytes:
            stored = io.BytesIO()
            self.savefig(stored, format="png", dpi=110)
            return stored.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def dress(axes: Axes) -> Axes:
    """Axes with a light grid and no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.35, linewidth=0.6)
    return axes


def figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Any]:
    """An empty figure with one pair of axes; see :func:`empty`."""
    drawn = empty(width, height)
    return drawn, dress(drawn.add_subplot())


def style(i: int) -> dict[str, Any]:
    """Colour and marker of the ``i``-th line."""
    look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.6}
    return look if i < len(COLOURS) else look | {"markerfacecolor": "none"}  # the second of a colour
