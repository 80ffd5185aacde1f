"""Searches on the tree of prefixes in plain Python, on trees whose draws are recorded run by run."""

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
        steps = tree.runs[number] if number < len(tree.runs) else []
        symbols = [int(steps[len(node)][i, problem]) if len(node) < len(steps) else -1 for i in range(expand)]
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


@dataclass
class Node:
    """
    :ivar int parent: its number; node 0 is its own.
    :ivar float score: of the prefix, -inf where that is impossible.
    :ivar Path solution: a complete path that the node has; empty where it has none.
    """

    path: Path
    parent: int
    score: float
    solution: Path = ()
    visits: int = 1
    total: float = 0.0
    children: int = 0


@dataclass
class Simulated:
    """
    :ivar list parents: the nodes that the simulations drew a child from, in order.
    :ivar list nodes: in order.
    """

    path: Path
    parents: list[int]
    nodes: list[Node]


class MissingDraw(Exception):
    """A search did not draw what its definition would have."""


def drawn_child(tree: RecordedTree, run: int, particle: int, problem: int, prefix: Path, rollout: bool) -> tuple[Path, Path]:
    """The child of a prefix that a particle drew, and the complete path of its rollout."""

    def symbol(path: Path) -> int:
        steps = tree.runs[run] if run < len(tree.runs) else []
        found = int(steps[len(path)][particle, problem]) if len(path) < len(steps) else -1
        if not 0 <= found < SYMBOLS:
            raise MissingDraw(f"run {run} has no symbol after {path}")
        return found

    def is_complete(path: Path) -> bool:
        return tree.finished(path) or len(path) == tree.length

    child = (*prefix, symbol(prefix))
    path = child
    while rollout and not is_complete(path):
        path = (*path, symbol(path))
    return child, path if is_complete(path) else ()


def mcts(
    tree: RecordedTree,
    problem: int,
    simulations: int,
    batch: int,
    exploration: float = 1.0,
    widening: float = 1.0,
    widening_power: float = 0.5,
    value: str = "prefix",
) -> Simulated:
    """The definition of :class:`MCTS`: run r of the model draws the r-th batch of children."""
    nodes = [Node((), 0, 0.0, visits=0)]
    parents: list[int] = []

    def descend() -> int:
        at = 0
        while True:
            nodes[at].visits += 1
            below = [i for i, n in enumerate(nodes) if i and n.parent == at and n.score > -math.inf]
            below = [i for i in below if not tree.finished(nodes[i].path) and len(nodes[i].path) < tree.length]
            if not below or nodes[at].children < widening * nodes[at].visits ** widening_power:
                nodes[at].children += 1
                return at
            log_n = math.log(nodes[at].visits)
            at = max(below, key=lambda i: (nodes[i].total / nodes[i].visits + exploration * math.sqrt(log_n / nodes[i].visits), -i))

    run = 0
    while len(parents) < simulations:
        chosen = [descend() for _ in range(min(batch, simulations - len(parents)))]
        first = len(nodes)
        for i, parent in enumerate(chosen):
            child, path = drawn_child(tree, run, i, problem, nodes[parent].path, value == "rollout")
            nodes.append(Node(child, parent, tree.score(child), path if path and tree.score(path) > -math.inf else ()))
        waiting = list(range(first, len(nodes)))
        for i in waiting:
            nodes[i].total = math.exp(tree.score(nodes[i].path if value == "prefix" else _whole(tree, nodes[i], run, i - first, problem)))
        told = {i: nodes[i].total for i in waiting}
        above = {i: nodes[i].parent for i in waiting}
        while above:
            for i, ancestor in above.items():
                nodes[ancestor].total += told[i]
            above = {i: nodes[ancestor].parent for i, ancestor in above.items() if ancestor}
        parents += chosen
        run += 1
    return Simulated(answer_of(tree, nodes), parents, nodes)


def _whole(tree: RecordedTree, node: Node, run: int, particle: int, problem: int) -> Path:
    """The rollout of a node, possible or not."""
    return drawn_child(tree, run, particle, problem, node.path[:-1], True)[1]


def answer_of(tree: RecordedTree, nodes: list[Node]) -> Path:
    """The best complete path, of ties the first; else the prefix that was visited most, of ties the first."""
    complete = [node.solution for node in nodes if node.solution]
    if complete:
        return max(complete, key=tree.score)
    at = 0
    while below := [i for i, n in enumerate(nodes) if i and n.parent == at and n.score > -math.inf]:
        at = max(below, key=lambda i: (nodes[i].visits, -i))
    return nodes[at].path


Arms = tuple[Any, Any, Any]
"""Draws of a batch at one depth, one row for each simulation: for a new child, for going down, and for every node by its number."""


def ab_mcts(
    tree: RecordedTree, problem: int, simulations: int, batch: int, draws: list[list[Arms]], value: str = "prefix"
) -> tuple[Simulated, list[list[tuple[list[list[float]], ...]]]]:
    """The definition of :class:`ABMCTS` with given draws of mean scores, and the scores that each of them must have been drawn from.

    :param list draws: of each batch but the first, of each depth.
    :returns: also, in the shape of ``draws``, the scores behind a new child and going down of each simulation, and those of each node.
    """
    nodes = [Node((), 0, 0.0, visits=0)]
    parents: list[int] = []
    behind: list[list[tuple[list[list[float]], ...]]] = []
    scores: dict[int, float] = {}

    def subtree(i: int) -> list[float]:
        below = [s for j, n in enumerate(nodes) if j and n.parent == i and j != i for s in subtree(j)]
        return ([scores[i]] if i else []) + below

    def descend(k: int, levels: list[Arms], seen: list[tuple[list[list[float]], ...]]) -> int:
        at = 0
        for depth, (wider, deeper, arms) in enumerate(levels):
            children = [i for i, n in enumerate(nodes) if i and n.parent == at]
            new = [scores[i] for i in children]
            further = [s for i in children for s in subtree(i)[1:]]
            while len(seen) <= depth:
                seen.append(([], [], [subtree(i) for i in range(len(nodes))]))
            seen[depth][0].append(new)
            seen[depth][1].append(further)
            below = [i for i in children if nodes[i].score > -math.inf and not tree.finished(nodes[i].path)]
            below = [i for i in below if len(nodes[i].path) < tree.length]
            if not below or not float(deeper[k]) > float(wider[k]):
                return at
            if arms is None:
                raise MissingDraw("the simulations go down, and no child was drawn for")
            at = max(below, key=lambda i: (float(arms[i][k]), -i))
        raise MissingDraw("the simulations go down, and nothing was drawn for the next prefix")

    run = 0
    while len(parents) < simulations:
        number = min(batch, simulations - len(parents))
        if run == 0:
            chosen = [0] * number
        else:
            behind.append([])
            chosen = [descend(k, draws[run - 1], behind[-1]) for k in range(number)]
        first = len(nodes)
        for i, parent in enumerate(chosen):
            child, path = drawn_child(tree, run, i, problem, nodes[parent].path, value == "rollout")
            scores[len(nodes)] = math.exp(tree.score(child if value == "prefix" else path))
            nodes.append(Node(child, parent, tree.score(child), path if path and tree.score(path) > -math.inf else ()))
        for i in range(first, len(nodes)):
            above = nodes[i].parent
            while above:
                nodes[above].visits += 1
                above = nodes[above].parent
        parents += chosen
        run += 1
    return Simulated(answer_of(tree, nodes), parents, nodes), behind
