r"""Problems of the demo models: a number goes through a list of operations, one per step of the solution.

A problem reads ``Start with 12. Step 1: add 5. Step 2: double it. What is the final number?`` and its solution
``Step 1: 12 + 5 = 17``, ``Step 2: 17 * 2 = 34``, ``The final answer is $\boxed{34}$.``, the steps being separated by an empty line.
The truth of every step is decided by :func:`check_steps`, without a model, so that language model and reward model can both be measured.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "LEVELS",
    "STEP_END",
    "Operation",
    "Problem",
    "check_steps",
    "example",
    "held_out",
    "looks_like_demo",
    "make_problem",
    "parse",
    "split_of",
    "split_solution",
]

STEP_END = "\n\n"


@dataclass(frozen=True)
class Level:
    """Size of the problems of one level.

    :param int num_steps: operations of a problem.
    :param int max_value: every number that a right solution states lies in 0 .. ``max_value``.
    :param int max_operand: largest number that is added or subtracted.
    """

    num_steps: int
    max_value: int
    max_operand: int


LEVELS: dict[int, Level] = {
    1: Level(2, 20, 9),
    2: Level(3, 50, 9),
    3: Level(4, 99, 20),
    4: Level(5, 99, 50),
    5: Level(6, 150, 99),
    6: Level(7, 199, 99),
}
MAX_FACTOR = 9

_INTROS = ("Start with {}.", "Begin with {}.", "Take the number {}.")
_QUESTIONS = ("What is the final number?", "What number do you get?")
_PHRASES: dict[str, tuple[str, ...]] = {
    "+": ("add {}", "increase it by {}"),
    "-": ("subtract {}", "take away {}"),
    "*": ("multiply by {}",),
}
_SHORT_PHRASES = {2: "double it", 3: "triple it"}


@dataclass(frozen=True)
class Operation:
    """One operation: ``symbol`` is ``+``, ``-`` or ``*``."""

    symbol: str
    operand: int

    def __call__(self, value: int) -> int:
        if self.symbol == "+":
            return value + self.operand
        return value - self.operand if self.symbol == "-" else value * self.operand


@dataclass(frozen=True)
class Problem:
    """A demo problem with its right solution.

    :param str text: what the language model is asked.
    :param str answer: the final number.
    :param int level: 1 (two operations, small numbers) .. 6 (seven operations, larger numbers).
    :param tuple steps: the steps of the right solution, without their separators.
    :param int start: the number to start with.
    :param tuple operations: the operations in order.
    """

    text: str
    answer: str
    level: int
    steps: tuple[str, ...]
    start: int
    operations: tuple[Operation, ...]

    @property
    def solution(self) -> str:
        """The right solution as the language model writes it."""
        return STEP_END.join(self.steps)


def write_step(position: int, left: int, operation: Operation, result: int) -> str:
    """Text of the step at ``position`` (from 0); the arithmetic is the caller's, so that mistakes can be written too."""
    return f"Step {position + 1}: {left} {operation.symbol} {operation.operand} = {result}"


def write_answer(value: int | str) -> str:
    """Text of the last step."""
    return f"The final answer is $\\boxed{{{value}}}$."


def _solved(text: str, level: int, start: int, operations: Sequence[Operation]) -> Problem:
    value, steps = start, []
    for position, operation in enumerate(operations):
        steps.append(write_step(position, value, operation, operation(value)))
        value = operation(value)
    steps.append(write_answer(value))
    return Problem(text, str(value), level, tuple(steps), start, tuple(operations))


def _draw_operation(value: int, size: Level, rng: random.Random) -> Operation:
    """An operation whose result stays in the level's range."""
    largest = {
        "+": min(size.max_operand, size.max_value - value),
        "-": min(size.max_operand, value),
        "*": min(MAX_FACTOR, size.max_value // value) if value else 0,
    }
    smallest = {"+": 1, "-": 1, "*": 2}
    symbol = rng.choice([symbol for symbol in "+-*" if largest[symbol] >= smallest[symbol]])
    return Operation(symbol, rng.randint(smallest[symbol], largest[symbol]))


def _phrase(operation: Operation, rng: random.Random) -> str:
    if operation.symbol == "*" and operation.operand in _SHORT_PHRASES and rng.random() < 0.5:
        return _SHORT_PHRASES[operation.operand]
    return rng.choice(_PHRASES[operation.symbol]).format(operation.operand)


def make_problem(level: int, rng: random.Random) -> Problem:
    """Draw a problem.

    :param int level: 1 .. 6.
    :param random.Random rng: source of randomness; the same state gives the same problem.
    :raises ValueError: for a level that does not exist.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {sorted(LEVELS)}, not {level!r}")
    size = LEVELS[level]
    start = value = rng.randint(1, size.max_value)
    operations = []
    for _ in range(size.num_steps):
        operations.append(_draw_operation(value, size, rng))
        value = operations[-1](value)
    parts = [rng.choice(_INTROS).format(start)]
    parts += [f"Step {position + 1}: {_phrase(operation, rng)}." for position, operation in enumerate(operations)]
    return _solved(" ".join([*parts, rng.choice(_QUESTIONS)]), level, start, operations)


_NUMBER = r"(0|[1-9]\d{0,3})"


def _pattern(templates: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(template).replace(r"\{\}", _NUMBER) for template in templates), re.ASCII)


_INTRO_PATTERN = _pattern(_INTROS)
_PHRASE_PATTERNS = {symbol: _pattern(phrases) for symbol, phrases in _PHRASES.items()}
_STEP_PATTERN = re.compile(rf"Step (\d): {_NUMBER} ([-+*]) {_NUMBER} = {_NUMBER}", re.ASCII)
_ANSWER_PATTERN = re.compile(rf"The final answer is \$\\boxed\{{{_NUMBER}\}}\$\.", re.ASCII)


def _number(match: re.Match[str]) -> int:
    return int(next(group for group in match.groups() if group is not None))


def _parse_phrase(phrase: str) -> Operation:
    for factor, short in _SHORT_PHRASES.items():
        if phrase == short:
            return Operation("*", factor)
    for symbol, pattern in _PHRASE_PATTERNS.items():
        if match := pattern.fullmatch(phrase):
            return Operation(symbol, _number(match))
    raise ValueError(f"not an operation of the demo: {phrase!r}")


def parse(text: str) -> Problem:
    """Read a problem back from its text.

    :param str text: the text of a demo problem; white space around it is ignored.
    :raises ValueError: if the text is not a problem that :func:`make_problem` could have drawn (wording, number of steps, size of numbers).
    """
    text = text.strip()
    question = next((question for question in _QUESTIONS if text.endswith(f". {question}")), None)
    intro = _INTRO_PATTERN.match(text)
    if question is None or intro is None:
        raise ValueError("not a demo problem: unknown opening or question")
    start = _number(intro)
    operations = []
    for position, part in enumerate(text[intro.end() : -len(question) - 2].split(".")):
        head = f" Step {position + 1}: "
        if not part.startswith(head):
            raise ValueError(f"not a demo problem: expected {head.strip()!r} in {part!r}")
        operations.append(_parse_phrase(part.removeprefix(head)))
    level = next((level for level, size in LEVELS.items() if size.num_steps == len(operations)), None)
    if level is None:
        raise ValueError(f"not a demo problem: {len(operations)} steps")
    _require_in_range(start, operations, LEVELS[level])
    return _solved(text, level, start, operations)


def _require_in_range(start: int, operations: Sequence[Operation], size: Level) -> None:
    value = start
    for operation in operations:
        low, high = (2, MAX_FACTOR) if operation.symbol == "*" else (1, size.max_operand)
        value = operation(value)
        if not low <= operation.operand <= high or not 0 <= value <= size.max_value:
            raise ValueError(f"not a demo problem: {operation} leaves the range of its level")
    if not 1 <= start <= size.max_value:
        raise ValueError(f"not a demo problem: start {start} is outside the range of its level")


def looks_like_demo(text: str) -> bool:
    """Whether the text is a problem of the kind that the demo models were trained on."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


def split_solution(text: str, end_token: str = "<|im_end|>") -> list[str]:
    """Cut a solution into steps, without separators and without the end token."""
    text = text.removesuffix(end_token).rstrip()
    return text.split(STEP_END) if text else []


def check_steps(problem: Problem | str, steps: Sequence[str], end_token: str = "<|im_end|>") -> list[bool]:
    """Label every step by itself: an error does not make the steps after it wrong.

    A step is right iff its number, operation and operand are the problem's at that position, its left operand is the result that the
    step before states (the start value at first) and its arithmetic holds. The answer is right iff it repeats the last stated result
    after all operations. After a malformed step nothing is stated, hence the step that follows it is wrong as well.

    :param problem: a problem or its text.
    :param steps: texts of the steps; trailing white space and the end token are ignored.
    :return: one label per step.
    :raises ValueError: if ``problem`` is a text that :func:`parse` refuses.
    """
    problem = parse(problem) if isinstance(problem, str) else problem
    labels: list[bool] = []
    stated: int | None = problem.start
    for position, step in enumerate(steps):
        step = step.rstrip().removesuffix(end_token).rstrip()
        if position == len(problem.operations):
            answer = _ANSWER_PATTERN.fullmatch(step)
            labels.append(answer is not None and int(answer[1]) == stated)
            stated = None
            continue
        match = _STEP_PATTERN.fullmatch(step)
        if match is None or position > len(problem.operations):
            labels.append(False)
            stated = None
            continue
        number, left, operation, result = int(match[1]), int(match[2]), Operation(match[3], int(match[4])), int(match[5])
        wanted = (position + 1, problem.operations[position], stated)
        labels.append((number, operation, left) == wanted and operation(left) == result)
        stated = result
    return labels


def split_of(text: str) -> str:
    """``"train"`` (90 %), ``"validation"`` or ``"held_out"`` (5 % each): a hash of the text decides, so the parts cannot overlap."""
    bucket = hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 20
    return {0: "held_out", 1: "validation"}.get(bucket, "train")


def draw(split: str, level: int, rng: random.Random) -> Problem:
    """Draw a problem of one split by rejection."""
    while split_of((problem := make_problem(level, rng)).text) != split:
        pass
    return problem


def held_out(n: int, seed: int = 0, split: str = "held_out") -> list[Problem]:
    """Distinct problems that no training saw, balanced over the levels (1, 2, .., 6, 1, 2, ..).

    :param int n: number of problems.
    :param int seed: seed of the draw.
    :param str split: ``"held_out"``, or ``"validation"`` for choices made during training.
    """
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < n:
        problem = draw(split, 1 + len(problems) % len(LEVELS), rng)
        problems.setdefault(problem.text, problem)
    return list(problems.values())


def example(level: int = 3) -> Problem:
    """One fixed held-out problem of the level."""
    return draw("held_out", level, random.Random(level))
