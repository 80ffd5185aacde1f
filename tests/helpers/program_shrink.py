"""Makes a failing program smaller: fewer and smaller choices, as long as the same cell fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.helpers.program_ast import AnyProgram
from tests.helpers.program_strategies import Choices, generate


def shrink(
    choices: list[int],
    features: frozenset[str],
    fails: Callable[[AnyProgram], bool],
    *,
    attempts: int = 400,
    seconds: float = 120.0,
) -> AnyProgram:
    """The program of the smallest sequence of choices found that still fails.

    :param choices: of a program that fails.
    :param fails: whether a program fails as that one does; deterministic.
    """
    end = time.monotonic() + seconds
    best = choices
    tried: set[tuple[int, ...]] = set()
    improved = True
    while improved:
        improved = False
        for candidate in smaller(best):
            made = Choices(recorded=candidate)
            program = generate(made, features)
            key = tuple(made.made)
            if not order(made.made) < order(best) or key in tried:
                continue
            if len(tried) >= attempts or time.monotonic() > end:
                return generate(Choices(recorded=best), features)
            tried.add(key)
            if fails(program):
                best, improved = made.made, True
                break
    return generate(Choices(recorded=best), features)


def order(choices: list[int]) -> tuple[int, list[int]]:
    return len(choices), choices


def smaller(choices: list[int]) -> Iterator[list[int]]:
    """Sequences with a piece left out or zeroed, then with a choice lowered."""
    size = len(choices) // 2
    while size:
        for start in range(0, len(choices), size):
            yield choices[:start] + choices[start + size :]
            if any(choices[start : start + size]):
                yield choices[:start] + [0] * len(choices[start : start + size]) + choices[start + size :]
        size //= 2
    for k, choice in enumerate(choices):
        if choice > 1:
            yield [*choices[:k], choice - 1, *choices[k + 1 :]]
