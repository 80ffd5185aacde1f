r"""Problems of the demo models: a number goes through a list of operations, one per step of the solution.

A problem reads ``Start with 12. First: add 5. Second: double it. What is the final number?`` and its solution
``First: 12 + 5 = 17``, ``Second: 17 * 2 = 34``, ``The final answer is $\boxed{34}$.``, the steps being separated by an empty line.
The truth of every step is decided by :mod:`ppl_llm.demo.checker`, without a model, so that both models can be measured.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "LEVELS",
    "STEP_END",
    "Operation",
    "Problem",
    "example",
    "held_out",
    "make_problem",
    "split_of",
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
    2: Level(3, 30, 9),
    3: Level(4, 40, 9),
    4: Level(5, 50, 9),
    5: Level(6, 70, 9),
    6: Level(7, 99, 9),
}
MAX_FACTOR = 5

# A word of its own per position: a small network finds the operation of a step by this one token, while the digits of "Step 1" occur
# all over the problem.
ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh")

INTROS = ("Start with {}.", "Begin with {}.", "Take the number {}.")
QUESTIONS = ("What is the final number?", "What number do you get?")
PHRASES: dict[str, tuple[str, ...]] = {
    "+": ("add {}", "increase it by {}"),
    "-": ("subtract {}", "take away {}"),
    "*": ("multiply by {}",),
}
SHORT_PHRASES = {2: "double it", 3: "triple it"}


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
    return f"{ORDINALS[position]}: {left} {operation.symbol} {operation.operand} = {result}"


def write_answer(value: int | str) -> str:
    """Text of the last step."""
    return f"The final answer is $\\boxed{{{value}}}$."


def solved(text: str, level: int, start: int, operations: Sequence[Operation]) -> Problem:
    """The problem with its right solution."""
    value, steps = start, []
    for position, operation in enumerate(operations):
        steps.append(write_step(position, value, operation, operation(value)))
        value = operation(value)
    steps.append(write_answer(value))
    return Problem(text, str(value), level, tuple(steps), start, tuple(operations))


def draw_operation(value: int, size: Level, rng: random.Random) -> Operation:
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
    if operation.symbol == "*" and operation.operand in SHORT_PHRASES and rng.random() < 0.5:
        return SHORT_PHRASES[operation.operand]
    return rng.choice(PHRASES[operation.symbol]).format(operation.operand)


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
        operations.append(draw_operation(value, size, rng))
        value = operations[-1](value)
    parts = [rng.choice(INTROS).format(start)]
    parts += [f"{ordinal}: {_phrase(operation, rng)}." for ordinal, operation in zip(ORDINALS, operations, strict=False)]
    return solved(" ".join([*parts, rng.choice(QUESTIONS)]), level, start, operations)


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
