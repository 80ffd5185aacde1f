"""Where steps of Markdown end: at a blank line outside of code fences and display mathematics, as an automaton over bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MARKDOWN = "markdown"
"""The delimiter that stands for this rule."""

_SPACE = b" \t\r"


class _Builder:
    """States by name; transitions that are not given go where those of another state go, or to one state."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.rows: dict[str, tuple[str, dict[int, str]]] = {}

    def state(self, name: str, other: str, **transitions: str) -> None:
        """:param str other: the state after every other byte; ``=NAME`` for the same as from that state.
        :param transitions: by class of bytes, see ``_CLASSES``.
        """
        self.names[name] = len(self.names)
        self.rows[name] = other, {byte: target for kind, target in transitions.items() for byte in _CLASSES[kind]}

    def table(self, accept: str) -> NDArray[np.int64]:
        """``[states, 256]``; the last state accepts and absorbs."""
        number = {**self.names, accept: len(self.names)}

        def target(name: str, byte: int) -> str:
            other, own = self.rows[name]
            return own[byte] if byte in own else target(other[1:], byte) if other.startswith("=") else other

        rows = [[number[target(name, byte)] for byte in range(256)] for name in self.names]
        return np.array([*rows, [number[accept]] * 256], dtype=np.int64)


_CLASSES = {
    "newline": b"\n",
    "space": _SPACE,
    "dollar": b"$",
    "backslash": b"\\",
    "opening": b"[",
    "closing": b"]",
    "tick": b"`",
    "tilde": b"~",
}


def markdown_automaton() -> NDArray[np.int64]:
    """``[states, 256]`` next state; state 0 is the start of a step, the last one accepts and absorbs.

    A step ends with the line break of a blank line (spaces, tabs and carriage returns only) that comes after some text. No blank line ends
    it within

    - a code fence: three or more backticks or tildes with no further one in the rest of their line, up to a line that holds nothing but
      as many of them, four or more counting as four. What comes before them in their line is of no matter, as models open fences behind
      list marks and words;
    - display mathematics, between ``$$`` and ``$$`` or ``\\[`` and ``\\]``. A character after a backslash is no mark, and in a line a
      single backtick hides marks up to the next one.
    """
    b = _Builder()
    marks = {"newline": "line", "dollar": "dollar", "backslash": "escape", "tick": "tick1", "tilde": "tilde1"}
    b.state("start", "=text", space="start", newline="start")  # no text yet
    b.state("line", "=text", space="line", newline="accept")  # at the beginning of a line, after some text
    b.state("text", "text", **marks)
    b.state("escape", "text", newline="line", opening="bracket")
    b.state("dollar", "=text", dollar="dollars")
    b.state("dollars", "dollars", dollar="dollars1", backslash="dollars2")
    b.state("dollars1", "dollars", dollar="text", backslash="dollars2")
    b.state("dollars2", "dollars")
    b.state("bracket", "bracket", backslash="bracket1")
    b.state("bracket1", "bracket", closing="text")
    b.state("span", "span", tick="text", newline="line")
    b.state("tick1", "span", tick="tick2", newline="line")
    b.state("tilde1", "=text", tilde="tilde2")
    for mark in ("tick", "tilde"):
        b.state(f"{mark}2", "=text", **{mark: f"{mark}3"})
        for size in (3, 4):
            fence = f"{mark}{size}"
            info, line, inside, closed = (f"{fence} {part}" for part in ("info", "line", "inside", "closed"))
            b.state(fence, info, newline=line, **{mark: f"{mark}4"})
            b.state(info, info, newline=line, **{mark: "text"})  # one more of them in the line, and it was no fence
            b.state(line, inside, space=line, newline=line, **{mark: f"{fence} closing 1"})
            b.state(inside, inside, newline=line)
            for k in range(1, size):
                more = closed if k + 1 == size else f"{fence} closing {k + 1}"
                b.state(f"{fence} closing {k}", inside, newline=line, **{mark: more})
            b.state(closed, inside, space=closed, newline="line", **{mark: closed})
    return b.table("accept")
