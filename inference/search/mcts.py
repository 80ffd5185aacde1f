"""Monte Carlo tree search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_positive
from .prefix_tree import PrefixTree
from .simulation_search import SimulationSearch, ancestors, continued


@dataclass
class Visits:
    """What the simulations of a tree have found; all tensors are ``[M, *plates]``.

    :ivar Tensor number: N, simulations that went through each node, those under way included.
    :ivar Tensor total: the sum of their values; a simulation under way counts as one of value 0.
    :ivar Tensor children: drawn from each node, those under way included.
    """

    number: Tensor
    total: Tensor
    children: Tensor

    def add(self, count: int) -> None:
        """Nodes that a simulation has drawn, and no other has visited."""
        new = self.number.new_zeros(count, *self.number.shape[1:])
        self.number, self.total = torch.cat([self.number, new + 1]), torch.cat([self.total, new])
        self.children = torch.cat([self.children, new])


class MCTS(SimulationSearch):
    """Monte Carlo tree search: UCT with progressive widening and virtual loss.

    A simulation begins at the empty prefix. At a prefix with N simulations it draws a new child if the prefix has fewer than
    ``widening * N ** widening_power`` children, or none to go to. Otherwise it goes to the child with the greatest

        Q_i + exploration * sqrt(ln N / N_i)

    (ties: the first drawn), where Q_i is the mean value of the simulations through child i. The value of the new child is then told to it
    and to all of its ancestors. Complete executions, and those of score 0, are no children to go to.

    ``batch`` simulations choose one after the other, and their children are drawn and scored in one run of the model. A simulation under
    way counts as a visit of value 0 until its child has a value (virtual loss), so that those chosen after it go elsewhere. ``batch=1`` is
    the sequential algorithm. Prefixes of different lengths share the run: the shorter ones wait, and nothing is drawn for them meanwhile.

    Values are scores, exponentials of cumulative log-weights: of the prefix, with ``value="prefix"``, for which the preset ``twisted`` is
    meant, whose scores are probabilities however long the prefix; or, with ``value="rollout"``, of one execution that the model completes
    from it. The answer is the complete execution with the best score; where the simulations have found none, the prefix that they visited
    most is completed. A search gives no evidence.

    :param model: as for :class:`SMC`.
    :param int simulations: children drawn for each problem.
    :param int batch: simulations whose children are drawn together; also the number of candidates in the result.
    :param float exploration: c of UCT; values are taken to lie in [0, 1].
    :param float widening: children of a prefix that was visited once.
    :param float widening_power: how the number of children grows with visits: 0 for a fixed number, 1 for a child each time.
    :param str value: ``prefix`` or ``rollout``.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a tree of its own.
    :param int max_tokens_total: draw nothing more once so many tokens have been sampled.
    :param callback: called after each batch with the :class:`SearchPosterior` of its children.
    :raises ValueError: for arguments out of range.

    References

    [1] *Bandit based Monte-Carlo Planning*, Levente Kocsis, Csaba Szepesvári (2006).
    [2] *Continuous Upper Confidence Trees*, Adrien Couëtoux et al. (2011), for progressive widening.
    [3] *Parallel Monte-Carlo Tree Search*, Guillaume Chaslot, Mark Winands, Jaap van den Herik (2008), for virtual loss.
    """

    name: ClassVar[str] = "Monte Carlo tree search"

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        simulations: int = 64,
        batch: int = 8,
        *,
        exploration: float = 1.0,
        widening: float = 1.0,
        widening_power: float = 0.5,
        value: str = "prefix",
        max_plate_nesting: int = 0,
        max_tokens_total: int | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        if exploration != 0:
            check_positive("exploration", exploration)
        check_positive("widening", widening)
        if isinstance(widening_power, bool) or not isinstance(widening_power, int | float) or not 0.0 <= widening_power <= 1.0:
            raise ValueError(f"widening_power must lie in [0, 1], got {widening_power!r}")
        shared = {"max_plate_nesting": max_plate_nesting, "max_tokens_total": max_tokens_total, "callback": callback}
        super().__init__(model, simulations, batch, value, **shared)  # type: ignore[arg-type]
        self.exploration, self.widening, self.widening_power = exploration, widening, widening_power

    def begin(self, tree: PrefixTree) -> Visits:
        number = torch.ones(tree.size, *tree.plates, dtype=torch.float64)
        children = torch.zeros_like(number)
        number[0] = children[0] = tree.size - 1
        return Visits(number, torch.zeros_like(number), children)

    def select(self, tree: PrefixTree, known: Visits, number: int) -> Tensor:
        """One simulation after the other; each leaves its virtual loss on its way."""
        possible = continued(tree)
        parents = [self.descend(tree, known, possible) for _ in range(number)]
        known.add(number)
        return torch.stack(parents)

    def descend(self, tree: PrefixTree, known: Visits, possible: Tensor) -> Tensor:
        """The node ``[*plates]`` of each population from which a simulation draws a child.

        :param Tensor possible: ``[M, *plates]``: nodes to go down to.
        """
        node = torch.zeros(1, *tree.plates, dtype=torch.long)
        walking = torch.ones_like(node, dtype=torch.bool)
        while True:
            self.visit(known, node, walking)
            below, visits = possible & (tree.parent == node), known.number.gather(0, node)
            walking = walking & below.any(0) & ~self.widens(visits, known.children.gather(0, node))
            if not bool(walking.any()):
                known.children.scatter_add_(0, node, torch.ones_like(visits))
                return node[0]
            bound = torch.where(below, self.uct(known, visits), -torch.inf)
            node = torch.where(walking, bound.argmax(0, keepdim=True), node)

    def widens(self, visits: Tensor, children: Tensor) -> Tensor:
        """Whether nodes with so many visits and children get another child."""
        return children < self.widening * visits**self.widening_power

    def uct(self, known: Visits, visits: Tensor) -> Tensor:
        """The upper bound of every node ``[M, *plates]`` as a child of one with ``visits [1, *plates]``."""
        return known.total / known.number + self.exploration * (visits.log() / known.number).sqrt()

    def visit(self, known: Visits, node: Tensor, walking: Tensor) -> None:
        """A simulation has come to ``node [1, *plates]``, where it is still walking: virtual loss."""
        known.number.scatter_add_(0, node, walking.double())

    def backup(self, tree: PrefixTree, known: Visits, nodes: Tensor, values: Tensor) -> None:
        known.total[nodes] = values
        nodes, told = nodes.view(-1, *(1,) * len(tree.plates)).expand_as(values), torch.ones_like(values, dtype=torch.bool)
        for above in ancestors(tree, nodes):
            known.total.scatter_add_(0, above, torch.where(told, values, 0.0))
            told = told & (above > 0)

    def visits(self, known: Visits) -> Tensor:
        return known.number
