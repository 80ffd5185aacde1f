"""Random linear Gaussian programs."""

from __future__ import annotations

from collections.abc import Callable

from tests.helpers.program_ast import DICT, LIST, NESTED, TUPLE, GaussianProgram, GaussianStep

Choose = Callable[[int], int]
"""A choice below a bound, of which 0 is the simplest."""


def generate_gaussian(choose: Choose, features: frozenset[str]) -> GaussianProgram:
    used = {"gaussian"}
    problems = 1 + choose(3) if "problems" in features and choose(2) else 0
    theta = "gaussian parameter" in features and bool(choose(2))
    shared = theta and "gaussian shared parameter" in features and bool(choose(2))
    used |= ({"problems"} if problems else set()) | ({"gaussian parameter"} if theta else set())
    positive = theta and "gaussian positive parameter" in features and bool(choose(2))
    used |= ({"gaussian shared parameter"} if shared else set()) | ({"gaussian positive parameter"} if positive else set())
    every = 1 + (choose(4) == 3)

    def numbers(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[choose(len(values))] for _ in range(max(problems, 1)))

    def step() -> GaussianStep:
        scale = (1.0, 1.0, 1.0, 0.5, 2.0, 0.0)[choose(6)] if "scaled score" in features else 1.0
        if scale != 1.0:
            used.add("scaled score")
        return GaussianStep(
            a=numbers((1.0, 0.5, -0.9)),
            b=numbers((1.0, 0.5, -0.5)),
            c=numbers((0.0, 0.5, -0.3)),
            sd=numbers((1.0, 0.6, 1.4)),
            h=numbers((1.0, 0.7, -1.2)),
            noise=numbers((1.0, 0.8, 1.5)),
            y=numbers((0.0, 0.8, -1.0)),
            scale=scale,
            form=(TUPLE, DICT, LIST, NESTED)[choose(4)],
        )

    steps = tuple(step() for _ in range(1 + choose(3)))
    proposals = {}
    if "proposals" in features and choose(2):
        used.add("proposals")
        proposals = {f"z_{t}": ((0.0, 0.4, -0.4)[choose(3)], (1.8, 2.2)[choose(2)]) for t in range(len(steps))}
    return GaussianProgram(steps, theta, shared, positive, problems, every, proposals, frozenset(used))
