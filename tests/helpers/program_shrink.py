"""Makes a failing program smaller as long as the same cell fails: first its choices, then its statements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.helpers.program_ast import (
    ELEMENT,
    SHARED,
    AnyProgram,
    Barrier,
    Draw,
    End,
    GaussianProgram,
    Note,
    Program,
    Score,
    Statement,
    TokenProgram,
)
from tests.helpers.program_strategies import Choices, generate

Fails = Callable[[AnyProgram], bool]


def shrink(choices: list[int], features: frozenset[str], fails: Fails, *, attempts: int = 300, seconds: float = 120.0) -> AnyProgram:
    """The smallest program found that still fails.

    :param choices: of a program that fails.
    :param fails: whether a program fails as that one does; deterministic.
    """
    end = time.monotonic() + seconds
    return shrink_statements(shrink_choices(choices, features, fails, attempts, end - seconds / 2), fails, attempts, end)


def shrink_choices(choices: list[int], features: frozenset[str], fails: Fails, attempts: int, end: float) -> AnyProgram:
    """Fewer and smaller choices."""
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


# Statements ------------------------------------------------------------------------------------------------------------------------------


def shrink_statements(program: AnyProgram, fails: Fails, attempts: int, end: float) -> AnyProgram:
    """Fewer and simpler statements, also where no choices make them."""
    improved = True
    while improved:
        improved = False
        for candidate in simpler(program):
            attempts -= 1
            if attempts < 0 or time.monotonic() > end:
                return program
            if fails(candidate):
                program, improved = candidate, True
                break
    return program


def simpler(program: AnyProgram) -> Iterator[AnyProgram]:
    if isinstance(program, GaussianProgram):
        if len(program.steps) > 1:
            kept = program.steps[:-1]
            yield replace(program, steps=kept, proposals={k: q for k, q in program.proposals.items() if k != f"z_{len(kept)}"})
        if program.proposals:
            yield replace(program, proposals={})
        return
    if isinstance(program, TokenProgram):
        if program.problems:
            for prompt in program.prompts:
                yield replace(program, prompts=(prompt,), problems=0)
        for name in ("steps", "tokens"):
            if getattr(program, name) > 1:
                yield replace(program, **{name: getattr(program, name) - 1})
        return
    if program.problems:
        for k in range(program.problems):
            chosen = tuple(one_problem(s, k) for s in program.statements)
            yield replace(program, statements=chosen, problems=0, subsample=0)
    for name in ("proposals", "condition", "replay"):
        for site in getattr(program, name):
            yield replace(program, **{name: {k: v for k, v in getattr(program, name).items() if k != site}})
    for k in range(len(program.statements)):
        shorter = without(program, k)
        if shorter is not None:
            yield shorter
    for k, s in enumerate(program.statements):
        if isinstance(s, Draw | Score):
            for changed in (replace(s, scale=1.0), replace(s, table=flat(s.table))):
                if changed != s:
                    yield replace(program, statements=(*program.statements[:k], changed, *program.statements[k + 1 :]))


def one_problem(s: Statement, k: int) -> Statement:
    """A statement for problem ``k`` alone."""
    return replace(s, table=s.table[k]) if isinstance(s, Draw | Score) and s.where != SHARED else s


def flat(table: Any) -> Any:
    """All entries one."""
    return tuple(map(flat, table)) if isinstance(table, tuple) else type(table)(1)


def without(program: Program, k: int) -> Program | None:
    """The program without a statement; ``None`` if others need it."""
    s = program.statements[k]
    rest = (*program.statements[:k], *program.statements[k + 1 :])
    if isinstance(s, Draw | Note):
        needed = {name for other in rest if isinstance(other, Draw | Score | Note) for name in other.parents}
        needed |= {other.variable for other in rest if isinstance(other, End)}
        if s.variable in needed or sum(isinstance(other, Draw) for other in rest) == 0:
            return None
        rest = tuple(through(other, s.variable) if isinstance(other, Barrier) else other for other in rest)
        if any(isinstance(other, Barrier) and not other.variables for other in rest):
            return None
    fixed = {
        name: {site: v for site, v in getattr(program, name).items() if site != getattr(s, "site", None) or not isinstance(s, Draw)}
        for name in ("proposals", "condition", "replay")
    }
    elements = program.elements if any(getattr(other, "where", "") == ELEMENT for other in rest) else 0
    return replace(program, statements=rest, elements=elements, **fixed)


def through(barrier: Barrier, variable: str) -> Barrier:
    """A barrier that a variable does not pass through."""
    return replace(barrier, variables=tuple(name for name in barrier.variables if name != variable))
