"""Searches with a frontier in plain Python, on trees whose draws are recorded run by run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.helpers.searches import SYMBOLS, Path, Tree, tree


@dataclass
class RecordedTree(Tree):
    """
    :ivar list runs: of each execution of the model, the symbols ``[particles, problems]`` of each step.
    """

    runs: list[list[Tensor]] = field(default_factory=list)

    def __call__(self, problems: int) -> Any:
        self.draws = []
        self.runs.append(self.draws)
        return super().__call__(problems)


def recorded(seed: int, length: int = 4, **kwargs: Any) -> RecordedTree:
    return RecordedTree(**{name: value for name, value in vars(tree(seed, length, **kwargs)).items() if name not in ("draws", "runs")})


@dataclass
class Answer:
    """
    :ivar path: the answer; a prefix where the budget ended before.
    :ivar list pops: the prefixes popped, in order.
    """

    path: Path
    pops: list[Path]


NOT_DRAWN = Answer((-1,), [])
"""Of a search that did not draw what the definition would have."""


def best_first(tree: RecordedTree, problem: int, expand: int, budget: int, step_cost: float = 0.0) -> Answer:
    """The definition of :class:`BestFirst`: run r of the model draws the r-th continuations."""

    def complete(path: Path) -> bool:
        return tree.finished(path) or len(path) == tree.length

    def f(path: Path) -> float:
        return step_cost * len(path) + (1 - math.exp(tree.score(path)) if step_cost else -tree.score(path))

    open_: list[Path] = []
    node: Path = ()
    pops = []
    for number in range(budget // expand):
        rounds = tree.runs[number] if number < len(tree.runs) else []
        symbols = [int(rounds[len(node)][i, problem]) if len(node) < len(rounds) else -1 for i in range(expand)]
        if not all(0 <= symbol < SYMBOLS for symbol in symbols):
            return NOT_DRAWN
        open_ += [(*node, symbol) for symbol in symbols if tree.score((*node, symbol)) > -math.inf]
        best = min(range(len(open_)), key=lambda i: (f(open_[i]), i))
        node = open_[best]
        pops.append(node)
        if complete(node):
            return Answer(node, pops)
        if number + 1 < budget // expand:
            del open_[best]
    finished = [path for path in open_ if complete(path)]
    return Answer(min(finished, key=f) if finished else node, pops)
