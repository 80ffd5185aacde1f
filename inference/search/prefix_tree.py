"""The tree of prefixes that a search has drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.prefix_messenger import Extension, Scored, extend
from ..handlers.replay_messenger import KnownValue
from ..particles.pytree import take

_WHOLE = 1 << 40
"""Segments of an execution, whatever their number."""


class PrefixTree:
    """Prefixes of executions as rows of tables, ``M`` nodes of each population; node 0 is the empty prefix.

    What a search decides by lies on the host, and values of sites where the model puts them. Nothing refers to a Python object for each
    node: a node is a row, and its children are the rows that name it as their parent.

    :param model: is run once each time that the tree grows.
    :param int capacity: nodes at most, node 0 and one for the answer not counted.
    :ivar Tensor parent: ``[M, *plates]``; the node itself for node 0.
    :ivar Tensor depth: ``[M, *plates]`` segments.
    :ivar Tensor log_v: ``[M, *plates]`` cumulative log-weights.
    :ivar Tensor done: ``[M, *plates]``: complete executions.
    :ivar Tensor solution: ``[M, *plates]`` log-weights of the complete executions that nodes have, -inf of those that have none.
    :ivar Tensor extent: ``[M, *plates]`` segments that are known of each node: its own, or all of an execution that was completed from it.
    :ivar Extension drawn: what was drawn last, ``None`` before.
    """

    def __init__(self, model: Callable[..., Any], capacity: int, nesting: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.capacity, self.nesting, self.args, self.kwargs = model, capacity, nesting, args, kwargs
        self.drawn: Extension | None = None
        self.parent: Tensor
        self.depth: Tensor
        self.log_v: Tensor
        self.done: Tensor
        self.solution: Tensor
        self.extent: Tensor
        self._values: dict[str, Tensor] = {}
        self._barriers: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Nodes, node 0 included."""
        return len(self.parent)

    @property
    def plates(self) -> torch.Size:
        return self.parent.shape[1:]

    @property
    def live(self) -> Tensor:
        """``[M, *plates]``: prefixes of positive weight."""
        return self.log_v > -torch.inf

    def plant(self, number: int, rollout: bool = False) -> Tensor:
        """The first ``number`` nodes, children of node 0; see :meth:`grow`."""
        self.drawn = extend(self.model, {}, number, self.nesting, self.args, self.kwargs, None if rollout else 1)
        root = torch.zeros(1, *self.drawn.done.shape[2:], dtype=torch.long)
        self.parent, self.depth, self.extent, self.log_v = root, root, root, root.double()
        self.done, self.solution = root.bool(), root.double() - torch.inf
        return self._add(root.expand(number, *self.plates), torch.ones(self.plates, dtype=torch.bool), rollout)

    def grow(self, parents: Tensor, searching: Tensor, rollout: bool = False) -> Tensor:
        """Draw a child for each of ``parents [K, *plates]``, in a single run of the model.

        Prefixes are of different lengths: the shorter ones wait, so that no more than a segment of each is drawn. The beginning that is
        known of all is not scored again.

        :param Tensor searching: ``[*plates]``: populations that search; the children of others are worthless, and cost as little as the
            model allows.
        :param bool rollout: complete executions from the children, which keep them.
        :returns: the new nodes ``[K]``.
        """
        depth = self.depth.gather(0, parents)
        wanted = searching.expand_as(depth)
        first = int(depth[wanted].min()) if bool(wanted.any()) else 0
        device = self._device
        scored = Scored(first, self._ancestors(parents, first)[1].to(device)) if first else None
        ends = torch.where(wanted, _WHOLE if rollout else depth + 1, 0)
        until = None if rollout else max(1, int(ends.max()))
        known = self.known(parents)
        run = self.model, known, len(parents), self.nesting, self.args, self.kwargs
        self.drawn = extend(*run, until, None if bool((ends == _WHOLE).all()) else ends.to(device), scored)
        return self._add(parents, searching, rollout)

    @property
    def _device(self) -> torch.device:
        assert self.drawn is not None
        return self.drawn.log_weights.device

    def _add(self, parents: Tensor, searching: Tensor, rollout: bool) -> Tensor:
        drawn = self.drawn
        assert drawn is not None
        log_weights, done = drawn.log_weights.cpu(), drawn.done.cpu()
        depth = self.depth.gather(0, parents)
        at = depth.clamp(max=len(done) - 1)[None]
        log_v, complete = log_weights.gather(0, at)[0], done.gather(0, at)[0]
        log_v = torch.where(searching, log_v, -torch.inf)
        solution = torch.where(searching, log_weights[-1], -torch.inf) if rollout else torch.where(complete, log_v, -torch.inf)
        begin, end = self.size - 1, self.size - 1 + len(parents)
        for name, value in drawn.values.items():
            if name not in self._values:
                self._values[name] = value.new_zeros(self.capacity + 1, *value.shape[1:])
            self._values[name][begin:end] = value
        self._barriers.update(drawn.barriers)
        self.parent, self.depth = torch.cat([self.parent, parents]), torch.cat([self.depth, depth + 1])
        self.log_v, self.done = torch.cat([self.log_v, log_v]), torch.cat([self.done, complete])
        self.solution = torch.cat([self.solution, solution])
        self.extent = torch.cat([self.extent, torch.full_like(depth, _WHOLE) if rollout else depth + 1])
        return torch.arange(begin + 1, end + 1)

    def known(self, nodes: Tensor, whole: bool = False) -> dict[str, KnownValue]:
        """The values of the prefixes ``nodes [K, *plates]``, or of all that is known of them."""
        depth, found = (self.extent if whole else self.depth).gather(0, nodes), {}
        for name, values in self._values.items():
            rows = (nodes - 1).clamp(min=0).to(values.device)  # node 0 has no values
            found[name] = KnownValue(take(values[: self.size - 1], rows), (self._barriers[name] < depth).to(values.device))
        return found

    def _ancestors(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """The ancestors of nodes at a depth, or the nodes where they lie above it, and their log-weights ``[K, *plates]``."""
        while bool((deeper := self.depth.gather(0, nodes) > depth).any()):
            nodes = torch.where(deeper, self.parent.gather(0, nodes), nodes)
        return nodes, self.log_v.gather(0, nodes)
