"""Where a step of Markdown ends, by a plain scan of the text: the reference of the automaton."""

from __future__ import annotations

import re

_BLANK = re.compile(r"[ \t\r]*\n")
_SPACES = re.compile(r"[ \t\r]*")
_RUN = re.compile(r"`+|~+")
_BRACKETS = re.compile(r"(?:\\[^\]]|[^\\])*\\\]", re.DOTALL)
_DOLLARS = re.compile(r"(?:\\.|\$\\.|\$[^$\\]|[^$\\])*\$\$", re.DOTALL)


def end_of_step(text: str) -> int | None:
    """The place after the line break that ends the first step, ``None`` if the step is open."""
    i, at_line_start, said = 0, True, False
    while i < len(text):
        if at_line_start:
            if blank := _BLANK.match(text, i):
                i = blank.end()
                if said:
                    return i
                continue
            i = _SPACES.match(text, i).end()  # type: ignore[union-attr]
            at_line_start, said = False, True
            continue
        line_end = text.find("\n", i) if "\n" in text[i:] else len(text)
        if text[i] == "\n":
            i, at_line_start = i + 1, True
        elif text.startswith("\\[", i) or text.startswith("$$", i):
            closed = (_BRACKETS if text[i] == "\\" else _DOLLARS).match(text, i + 2)
            if closed is None:
                return None
            i = closed.end()
        elif text[i] == "\\":
            i += 1 if text[i + 1 : i + 2] == "\n" else 2
        elif run := _RUN.match(text, i):
            mark, size, rest = text[i], len(run[0]), text[run.end() : line_end]
            i = run.end()
            if size >= 3 and mark not in rest:
                closing = re.compile(rf"^[ \t\r]*{mark}{{{min(size, 4)},}}[ \t\r]*\n", re.MULTILINE).search(text, line_end + 1)
                if closing is None:
                    return None
                i, at_line_start = closing.end(), True
            elif size >= 3 or (size == 1 and mark == "`"):
                i = i + rest.index(mark) + 1 if mark in rest else line_end
        else:
            i += 1
    return None


def steps_of(pieces: list[str], longest: int) -> list[tuple[list[str], bool]]:
    """The steps of a text that comes in pieces, none longer than so many, and whether each ends at a delimiter; the last may be open.

    What is open when a step is as long as it may be stays open in the next one.
    """
    found: list[tuple[list[str], bool]] = []
    said, step = "", list[str]()
    for piece in pieces:
        said, step = said + piece, [*step, piece]
        ended = end_of_step(said) is not None
        if ended or len(step) == longest:
            found.append((step, ended))
            said, step = "" if ended else said, []
    return [*found, (step, False)] if step else found
