"""What searches by simulations share: batches of children, and their values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..posterior.particle_posterior import ParticlePosterior
from ..util.validation import check_count, unknown_name
from .prefix_search import PrefixSearch
from .prefix_tree import PrefixTree

VALUES = ("prefix", "rollout")
_LARGEST = 700.0
"""Of log-weights: the exponential of more is no finite number."""


class SimulationSearch(PrefixSearch):
    """A tree search whose simulations draw one child each, ``batch`` of them in one run of the model.

    :param model: as for :class:`SMC`.
    :param int simulations: children drawn for each problem.
    :param int batch: children drawn together.
    :param str value: ``prefix``, the score of the child, or ``rollout``, that of an execution that the model completes from it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        simulations: int,
        batch: int,
        value: str,
        *,
        max_plate_nesting: int = 0,
        max_tokens_total: int | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("simulations", simulations)
        check_count("batch", batch)
        if value not in VALUES:
            raise unknown_name("value", value, VALUES)
        batch = min(batch, simulations)
        super().__init__(model, batch, max_plate_nesting=max_plate_nesting, max_tokens_total=max_tokens_total, callback=callback)
        self.simulations, self.batch, self.value = simulations, batch, value

    @property
    def capacity(self) -> int:
        return self.simulations

    @abstractmethod
    def begin(self, tree: PrefixTree) -> Any:
        """What is known of the nodes of a tree with its first children."""

    @abstractmethod
    def select(self, tree: PrefixTree, known: Any, number: int) -> Tensor:
        """The parents ``[number, *plates]`` of the next children."""

    @abstractmethod
    def backup(self, tree: PrefixTree, known: Any, nodes: Tensor, values: Tensor) -> None:
        """Tell the ancestors of new nodes ``[K]`` their values ``[K, *plates]``."""

    @abstractmethod
    def visits(self, known: Any) -> Tensor:
        """``[M, *plates]``: simulations that went through each node."""

    def search(self, tree: PrefixTree, spent: Callable[[], bool]) -> Tensor:
        rollout = self.value == "rollout"
        new = tree.plant(self.batch, rollout)
        known = self.begin(tree)
        everywhere = torch.ones(tree.plates, dtype=torch.bool)
        while True:
            self.report(tree)
            self.backup(tree, known, new, self.values(tree, new))
            number = min(self.batch, self.simulations + 1 - tree.size)
            if number == 0 or spent():
                break
            new = tree.grow(self.select(tree, known, number), everywhere, rollout)
        self.require_live(tree, tree.live[1:].any(0))
        complete = tree.solution > -torch.inf
        return torch.where(complete.any(0), tree.solution.argmax(0), self.favourite(tree, self.visits(known)))

    def values(self, tree: PrefixTree, nodes: Tensor) -> Tensor:
        """``[K, *plates]`` of new nodes ``[K]``."""
        log_value = tree.solution if self.value == "rollout" else tree.log_v
        return log_value[nodes].clamp(max=_LARGEST).exp()

    def favourite(self, tree: PrefixTree, visits: Tensor) -> Tensor:
        """``[*plates]``: the prefix that was visited most, to be completed where no complete execution was found; of ties the first."""
        node = torch.zeros(1, *tree.plates, dtype=torch.long)
        live = tree.live
        live[0] = False
        while True:
            below = live & (tree.parent == node)
            if not bool(below.any()):
                return node[0]
            most = torch.where(below, visits, -1.0).argmax(0, keepdim=True)
            node = torch.where(below.any(0), most, node)


def continued(tree: PrefixTree) -> Tensor:
    """``[M, *plates]``: nodes that a search may go down to: those of positive weight that are not complete."""
    found = tree.live & ~tree.done
    found[0] = False
    return found


def ancestors(tree: PrefixTree, nodes: Tensor) -> list[Tensor]:
    """The parents ``[K, *plates]`` of nodes, their parents, and so on up to node 0, where shorter lines wait."""
    lines = []
    while bool((nodes > 0).any()):
        nodes = tree.parent.gather(0, nodes)
        lines.append(nodes)
    return lines
