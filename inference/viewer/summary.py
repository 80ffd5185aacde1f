"""A posterior in a few lines of HTML, for notebooks: plain tables, so that any number of them can stand on a page."""

from __future__ import annotations

import html
from typing import Any

from ..posterior.discrete_marginal import DiscreteMarginal
from .populations import plate_names
from .viewable import Viewable

_ANSWERS = 5
_PROBLEMS = 12
_BAR = 90


def summary(posterior: Viewable) -> str:
    """The representation with its answers, if the model gives any."""
    first = posterior.particle((0,) * (posterior.particles.nesting + 1))
    told = f"<div><code>{html.escape(repr(posterior))}</code></div>"
    if not callable(getattr(first, "answers", None)):
        return told
    found = list(_flat(posterior.answers(), ()))
    rows = [_row(plate, marginal) for plate, marginal in found[:_PROBLEMS]]
    more = f"<div>{len(found) - _PROBLEMS} more problems</div>" if len(found) > _PROBLEMS else ""
    return f'{told}<table style="margin:.3em 0;border-collapse:collapse"><tbody>{"".join(rows)}</tbody></table>{more}'


def _flat(marginals: Any, plate: tuple[int, ...]) -> Any:
    if isinstance(marginals, DiscreteMarginal):
        yield plate, marginals
    else:
        for i, each in enumerate(marginals):
            yield from _flat(each, (*plate, i))


def _row(plate: tuple[int, ...], marginal: DiscreteMarginal) -> str:
    place = ", ".join(f"{name} {i}" for name, i in zip(plate_names(len(plate)), plate, strict=True))
    shown = list(marginal.probs.items())[:_ANSWERS]
    cells = "".join(_answer(answer, p) for answer, p in shown)
    rest = f"{len(marginal) - _ANSWERS} more" if len(marginal) > _ANSWERS else ""
    cell = 'style="text-align:left;padding:.1em .8em .1em 0"'
    return f"<tr>{f'<th {cell}>{place}</th>' if place else ''}{cells}<td {cell}>{rest}</td></tr>"


def _answer(answer: Any, p: float) -> str:
    text = "no answer" if answer is None else str(answer)
    name = html.escape(text if len(text) <= 40 else text[:39] + "…")
    bar = f"display:inline-block;width:{max(1, round(_BAR * p))}px;height:.6em;background:#2f7fc1;border-radius:2px"
    return f'<td style="text-align:left;padding:.1em 1.4em .1em 0"><b>{name}</b> {p:.3f} <span style="{bar}"></span></td>'
