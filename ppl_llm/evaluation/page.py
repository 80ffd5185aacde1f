"""Sections of tables and figures as one HTML file that needs no network."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .drawing import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[list[str]]

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2733; --soft: #556270; --line: #d9e0e7; --mark: #f3f5f8; --link: #1f63a5; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --ink: #e3e8ee; --soft: #a3afbc; --line: #313a45; --mark: #1d242d; --link: #7db4ee; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); }
body { max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.6rem; border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: var(--link); } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--page); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding: .3rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
tbody th { font-weight: 400; } tbody tr:hover > * { background: var(--mark); }
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.scroll { overflow-x: auto; margin: .8rem 0; }
figure { margin: 1rem 0; } figcaption, .note { color: var(--soft); font-size: .9rem; } svg { width: min(100%, 50rem); height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 1.5rem; }
@media print { nav, .skip { display: none; } figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Table:
    """
    :ivar Rows rows: the first is the head.
    :ivar bool words: cells hold text, not numbers.
    """

    caption: str
    rows: Rows
    words: bool = False

    def as_html(self) -> str:
        """With a caption, and heads of rows and columns marked as such."""
        head, *body = self.rows
        columns = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
        lines = "".join(
            f'<tr><th scope="row">{html.escape(first)}</th>' + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest) + "</tr>"
            for first, *rest in body
        )
        kind = ' class="words"' if self.words else ""
        # A table wider than the window is scrolled with the arrow keys.
        return (
            f'<div class="scroll" role="region" aria-label="{html.escape(self.caption)}" tabindex="0"><table{kind}>'
            f"<caption>{html.escape(self.caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Plot:
    """
    :ivar str name: of its files, unique in the page.
    :ivar str title: short.
    :ivar str description: what it shows, in words.
    """

    name: str
    title: str
    description: str
    figure: Figure

    def __post_init__(self) -> None:
        # Laid out once, not again for every file.
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def as_html(self) -> str:
        """The drawing with its caption."""
        drawing = inline(self.figure, re.sub(r"[^a-z0-9]+", "-", self.name.lower()), self.title, self.description)
        return f"<figure>{drawing}<figcaption>{html.escape(self.title)}. {html.escape(self.description)}</figcaption></figure>"

    def save(self, folder: Path) -> None:
        """As SVG and PNG files."""
        for kind in ("png", "svg"):
            self.figure.savefig(folder / f"{self.name}.{kind}", dpi=160)


@dataclass(frozen=True)
class Section:
    """
    :ivar str note: a sentence on how to read it.
    :ivar list blocks: tables and plots; plots in a nested list stand side by side.
    """

    title: str
    note: str = ""
    blocks: list[Table | Plot | list[Plot]] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """In order."""
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def plots(self) -> list[Plot]:
        """In order."""
        rows = [block if isinstance(block, list) else [block] for block in self.blocks]
        return [block for row in rows for block in row if isinstance(block, Plot)]


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """One self-contained document."""
    names = [f"section-{i}" for i in range(1, len(sections) + 1)]
    contents = "".join(f'<li><a href="#{name}">{html.escape(s.title)}</a></li>' for name, s in zip(names, sections, strict=True))
    body = "".join(_section(name, section) for name, section in zip(names, sections, strict=True))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without this line a browser asks the folder or server for an icon.
        f'<link rel="icon" href="data:,"><title>ppl-llm: {html.escape(title)}</title><style>{_STYLE}</style></head><body>'
        f'<a class="skip" href="#section-1">Skip to the results</a>'
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p></header>"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main>{body}</main></body></html>\n'
    )


def _section(name: str, section: Section) -> str:
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    parts = []
    for block in section.blocks:
        if isinstance(block, list):
            parts.append(f'<div class="pair">{"".join(plot.as_html() for plot in block)}</div>')
        else:
            parts.append(block.as_html())
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{html.escape(section.title)}</h2>{note}{"".join(parts)}</section>'
