"""The symbolic checker of the demo: reads a problem back from its text and labels the steps of a solution."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .problems import (
    INTROS,
    LEVELS,
    MAX_FACTOR,
    ORDINALS,
    PHRASES,
    QUESTIONS,
    SHORT_PHRASES,
    STEP_END,
    Level,
    Operation,
    Problem,
    solved,
    write_answer,
    write_step,
)

__all__ = ["check_steps", "looks_like_demo", "parse", "right_steps", "split_solution"]

KNOWN_NUMBERS = 40
"""The language model handles numbers up to here in problems of any length: of 30 and 60 such problems outside of their level's range a
sample is right as often as within it or more often (2 operations: 0.70 against 0.68, 3: 0.43 against 0.31), while beyond 40 two
operations fall to 0.32."""

_NUMBER = r"(0|[1-9]\d{0,3})"  # as people write numbers: no sign, no leading zero


def _pattern(templates: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(template).replace(r"\{\}", _NUMBER) for template in templates), re.ASCII)


_INTRO_PATTERN = _pattern(INTROS)
_PHRASE_PATTERNS = {symbol: _pattern(phrases) for symbol, phrases in PHRASES.items()}
_SIGNED = r"(?:0|-?[1-9]\d{0,8})"  # a mistake may lead below zero
_STEP_PATTERN = re.compile(rf"(?:{'|'.join(ORDINALS)}): {_SIGNED} [-+*] {_SIGNED} = ({_SIGNED})", re.ASCII)


def _number(match: re.Match[str]) -> int:
    return int(next(group for group in match.groups() if group is not None))


def _parse_phrase(phrase: str) -> Operation:
    for factor, short in SHORT_PHRASES.items():
        if phrase == short:
            return Operation("*", factor)
    for symbol, pattern in _PHRASE_PATTERNS.items():
        if match := pattern.fullmatch(phrase):
            return Operation(symbol, _number(match))
    raise ValueError(f"not an operation of the demo: {phrase!r}")


def parse(text: str) -> Problem:
    """Read a problem back from its text.

    :param str text: the text of a demo problem; white space around it is ignored.
    :raises ValueError: if the text is not a problem of the demo's kind: wording and number of steps of :func:`make_problem`, numbers in the
        range of their level or up to ``KNOWN_NUMBERS``.
    """
    text = text.strip()
    question = next((question for question in QUESTIONS if text.endswith(f". {question}")), None)
    intro = _INTRO_PATTERN.match(text)
    if question is None or intro is None:
        raise ValueError("not a demo problem: unknown opening or question")
    start = _number(intro)
    operations = []
    parts = text[intro.end() : -len(question) - 2].split(".")
    if len(parts) > len(ORDINALS):
        raise ValueError(f"not a demo problem: {len(parts)} steps")
    for ordinal, part in zip(ORDINALS, parts, strict=False):
        if not part.startswith(f" {ordinal}: "):
            raise ValueError(f"not a demo problem: expected {ordinal!r} in {part!r}")
        operations.append(_parse_phrase(part.removeprefix(f" {ordinal}: ")))
    level = next((level for level, size in LEVELS.items() if size.num_steps == len(operations)), None)
    if level is None:
        raise ValueError(f"not a demo problem: {len(operations)} steps")
    _require_in_range(start, operations, LEVELS[level])
    return solved(text, level, start, operations)


def _require_in_range(start: int, operations: Sequence[Operation], size: Level) -> None:
    value, largest = start, max(size.max_value, KNOWN_NUMBERS)
    for operation in operations:
        low, high = (2, MAX_FACTOR) if operation.symbol == "*" else (1, size.max_operand)
        value = operation(value)
        if not low <= operation.operand <= high or not 0 <= value <= largest:
            raise ValueError(f"not a demo problem: {operation} leaves the range of its level")
    if not 1 <= start <= largest:
        raise ValueError(f"not a demo problem: start {start} is outside the range of its level")


def looks_like_demo(text: str) -> bool:
    """Whether the text is a problem of the kind that the demo models know, see :func:`parse`."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


def split_solution(text: str, end_token: str = "<|im_end|>") -> list[str]:
    """Cut a solution into steps, without separators and without the end token."""
    text = text.removesuffix(end_token).rstrip()
    return text.split(STEP_END) if text else []


def right_steps(problem: Problem, steps: Sequence[str]) -> list[str | None]:
    """The one right step at each position, given the number that the step before it states; None where there is none.

    :param steps: texts of the steps, without trailing white space and end token.
    """
    rights: list[str | None] = []
    stated: int | None = problem.start
    for position, step in enumerate(steps):
        if stated is None:
            rights.append(None)
        elif position < len(problem.operations):
            operation = problem.operations[position]
            rights.append(write_step(position, stated, operation, operation(stated)))
        else:
            rights.append(write_answer(stated))
        match = _STEP_PATTERN.fullmatch(step)
        stated = int(match[1]) if match and position < len(problem.operations) else None
    return rights


def check_steps(problem: Problem | str, steps: Sequence[str], end_token: str = "<|im_end|>") -> list[bool]:
    """Label every step by itself: an error does not make the steps after it wrong.

    A step is right iff its ordinal, operation and operand are the problem's at that position, its left operand is the result that the
    step before states (the start value at first) and its arithmetic holds. The answer is right iff it repeats the last stated result
    after all operations. After a malformed step nothing is stated, hence the step that follows it is wrong as well.

    :param problem: a problem or its text.
    :param steps: texts of the steps; trailing white space and the end token are ignored.
    :return: one label per step.
    :raises ValueError: if ``problem`` is a text that :func:`parse` refuses.
    """
    problem = parse(problem) if isinstance(problem, str) else problem
    steps = [step.rstrip().removesuffix(end_token).rstrip() for step in steps]
    return [step == right for step, right in zip(steps, right_steps(problem, steps), strict=True)]
