"""Figures by matplotlib (extra ``plots``), as files and inside a page."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f7fc1", "#d1495b", "#2e8b57", "#c9780a", "#8b6cb8", "#0f8b8d", "#a0694b", "#7d7f2c", "#c2528b", "#6f7f8c")
"""Each at least three times as bright or as dark as a white and as a nearly black page."""

MARKERS = "osD^vP*Xhp"
_INK = "#000000"


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
    axes.grid(alpha=0.35, linewidth=0.6)
    return drawn, axes


def style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.6}


def legend_beside(drawn: Figure) -> None:
    """A legend that hides nothing."""
    drawn.legend(loc="outside right upper", frameon=False, fontsize=8)


def powers_of_two(axes: Any, ticks: list[int]) -> None:
    """A logarithmic axis with a label at each tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def inline(drawn: Figure, name: str, title: str, description: str) -> str:
    """An ``svg`` element for a page: transparent, in the page's text colour, with ids of its own.

    :param str name: unique in the page.
    :param str title: short name of the figure.
    :param str description: what it shows, in words, for those who do not see it.
    """
    import matplotlib

    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(text, format="svg", metadata=nothing, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("*{", f"#{name} *{{")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg).replace(_INK, "currentColor")
    words = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    head = f'<svg id="{name}" role="img" aria-labelledby="{name}-title {name}-desc" fill="currentColor"'
    opened, rest = svg.split(">", 1)
    return opened.replace("<svg", head, 1) + ">" + words + rest
