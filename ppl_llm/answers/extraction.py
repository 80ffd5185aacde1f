"""Answers in the text of solutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

_END_OF_THOUGHT = "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_HASH = re.compile(r"(?:^|\n)[ \t]*####[ \t]*([^\n]+?)\s*$")
_PHRASE = re.compile(r"\b(?:final\s+)?answer\b[*_]*(?:\s+is\b\s*[*_]*:?|\s*[:=])[*_\s]*(\S[^\n]*)", re.IGNORECASE)
_SENTENCE = re.compile(r".+?(?=[.!?](?:\s|$)|$)")
_MATHEMATICS = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_LETTER = re.compile(r"(?:(?i:option|choice)\s+)?(?:\(([A-Ja-j])\)|([A-J])(?:[).:]|$)).*", re.DOTALL)
_LONE_LETTER = re.compile(r"(?:(?i:option|choice)\s+)?(?:\(([A-Ja-j])\)|([A-E]))[.:]?")
_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def _boxed(text: str) -> str | None:
    for box in reversed(list(_BOX.finditer(text))):
        content = _content(text[box.end() :])
        if content is not None:
            return content.strip().removesuffix(".").strip("$ ")
    return None


def _content(rest: str) -> str | None:
    stripped = rest.lstrip()
    if not stripped.startswith("{"):
        word = stripped.split("$")[0].split()
        return word[0] if word and rest != stripped else None
    depth = 0
    escaped = False
    for i, character in enumerate(stripped):
        if not escaped:
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return stripped[1:i]
        escaped = character == "\\" and not escaped
    return None


def _hash(text: str) -> str | None:
    match = _HASH.search(text)
    return _tidied(match[1]) if match else None


def _phrase(text: str) -> str | None:
    said = [match[1].strip() for match in _PHRASE.finditer(text)]
    if not said or _BOX.search(said[-1]):
        return None  # a box that is not complete is no answer
    rest = said[-1]
    mathematics = _MATHEMATICS.match(rest)
    if mathematics:
        return _tidied(next(group for group in mathematics.groups() if group is not None))
    letter = _LETTER.fullmatch(rest.strip("*_ "))
    if letter:
        return (letter[1] or letter[2]).upper()
    sentence = _SENTENCE.match(rest)
    return _tidied(sentence[0]) if sentence else None


def _choice(text: str) -> str | None:
    last = text.strip().rsplit("\n", 1)[-1].strip("*_$ ")
    letter = _LONE_LETTER.fullmatch(_FONT.sub(r"\1", last).strip())
    return (letter[1] or letter[2]).upper() if letter else None


def _tidied(text: str) -> str | None:
    return text.strip("*_ ").removesuffix(".").strip("$*_ ") or None


FORMS: dict[str, Callable[[str], str | None]] = {"boxed": _boxed, "hash": _hash, "phrase": _phrase, "choice": _choice}
"""Ways to write an answer, in the order in which they are looked for."""


def extract_answer(text: str, forms: Collection[str] = tuple(FORMS)) -> str | None:
    r"""The answer that a solution gives, in the first of these forms that it has:

    - ``boxed``: the last complete ``\boxed{...}``, ``\fbox{...}`` or ``\framebox{...}`` (braces nest; ``\boxed 7`` without braces is read
      up to a space or ``$``);
    - ``hash``: ``#### 7`` in the last line;
    - ``phrase``: after the last "the final answer is", "answer is" or "answer:", the formula, choice letter or rest of the sentence;
    - ``choice``: a last line that is a letter, such as ``(B)``.

    White space at both ends, a final full stop and enclosing ``$`` signs are dropped. Where the text has a ``</think>``, what comes after
    the last one is looked at first.

    :param forms: the forms to look for.
    :returns: ``None`` where there is none of them.
    :raises ValueError: for a form that does not exist.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ValueError(f"unknown form of answers {unknown[0]!r}; known: {', '.join(FORMS)}")
    parts = [text.rpartition(_END_OF_THOUGHT)[2], text] if _END_OF_THOUGHT in text else [text]
    for part in parts:
        for form, find in FORMS.items():
            answer = find(part) if form in forms else None
            if answer is not None:
                return answer
    return None
