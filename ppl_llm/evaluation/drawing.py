"""Figures by matplotlib (extra ``plots``), as files and inside a page."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

from ..inference.viewer.canvas import COLOURS, MARKERS, figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "figure", "inline", "legend_beside", "powers_of_two", "style"]

_INK = "#000000"


def legend_beside(drawn: Figure) -> None:
    """A legend that hides nothing."""
    drawn.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=3.2)  # long enough to tell dashes


def powers_of_two(axes: Any, ticks: list[int]) -> None:
    """A logarithmic axis with a label at each tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def inline(drawn: Figure, name: str, title: str, description: str) -> str:
    """An ``svg`` element for a page: transparent, in the page's text colour, with its own ids.

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
