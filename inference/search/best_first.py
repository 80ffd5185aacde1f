"""Best-first search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_count
from .prefix_search import PrefixSearch
from .prefix_tree import PrefixTree


class BestFirst(PrefixSearch):
    """Best-first search: the prefix with the best score, wherever in the tree it is, is continued next.

    The frontier holds all prefixes that have been drawn and not continued. The best of it is popped, ``expand`` continuations of one step
    are drawn from the model, and join the frontier. A problem ends when the prefix popped is complete: it is the answer. When ``budget``
    continuations have been drawn, the best complete execution of the frontier is, and where there is none, the best prefix, which the
    model then completes.

    The prefix popped has the least ``f = g + h`` with ``h = 1 - exp(cumulative log-weight)``, one minus the score of the prefix (a
    probability with the preset ``twisted``). A*-decoding [1] adds a cost g of the way so far, whose form its authors leave open; here it
    is ``step_cost`` for each step, and 0 by default, which leaves the order of the scores themselves. Ties go to the prefix drawn first.

    Problems of a plate search side by side, one prefix of each in a batch. A search gives no evidence.

    :param model: as for :class:`SMC`.
    :param int expand: continuations of a prefix that is popped.
    :param int budget: continuations to draw for each problem, at most; those of the root count.
    :param float step_cost: g, for each step.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a frontier of its own.
    :param int max_tokens_total: draw nothing more once so many tokens have been sampled.
    :param callback: called after each iteration with the :class:`SearchPosterior` of the continuations that it drew.
    :raises ValueError: for arguments out of range.

    References

    [1] *A\\*-Decoding: Token-Efficient Inference Scaling*, Giannis Chatziveroglou (2025).
    """

    name: ClassVar[str] = "best-first search"
    reason: ClassVar[str] = "it follows the best prefix alone, and that is no draw from the posterior"

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        *,
        expand: int = 4,
        budget: int = 64,
        step_cost: float = 0.0,
        max_plate_nesting: int = 0,
        max_tokens_total: int | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("expand", expand)
        check_count("budget", budget)
        if budget < expand:
            raise ValueError(f"budget must be at least expand, the continuations of a single prefix ({expand}), got {budget}")
        if not isinstance(step_cost, int | float) or not 0.0 <= step_cost < float("inf"):
            raise ValueError(f"step_cost must be a finite number of at least 0, got {step_cost!r}")
        super().__init__(model, expand, max_plate_nesting=max_plate_nesting, max_tokens_total=max_tokens_total, callback=callback)
        self.expand, self.budget, self.step_cost = expand, budget, step_cost

    @property
    def capacity(self) -> int:
        return self.budget

    def search(self, tree: PrefixTree, spent: Callable[[], bool]) -> Tensor:
        tree.plant(self.expand)
        open_ = tree.live.clone()
        open_[0] = False
        running = torch.ones(tree.plates, dtype=torch.bool)
        best = torch.zeros(tree.plates, dtype=torch.long)
        for number in range(1, self.budget // self.expand + 1):
            self.report(tree)
            self.require_live(tree, open_.any(0))
            running = running & open_.any(0)
            best = torch.where(running, self.pop(tree, open_), best)
            running = running & ~tree.done.gather(0, best[None])[0]
            if not bool(running.any()) or number == self.budget // self.expand or spent():
                break
            open_ = open_.scatter(0, best[None], open_.gather(0, best[None]) & ~running)
            new = tree.grow(best[None].expand(self.expand, *best.shape), running)
            open_ = torch.cat([open_, tree.live[new]])
        complete = open_ & tree.done
        finished = torch.where(complete, self.priority(tree), -torch.inf).argmax(0)
        return torch.where(running & complete.any(0), finished, best)

    def priority(self, tree: PrefixTree) -> Tensor:
        """``[M, *plates]``, minus f up to a monotone map."""
        if self.step_cost == 0.0:
            return tree.log_v
        return tree.log_v.exp() - self.step_cost * tree.depth

    def order(self, tree: PrefixTree) -> Tensor:
        return self.priority(tree)

    def pop(self, tree: PrefixTree, open_: Tensor) -> Tensor:
        """The best open prefix ``[*plates]``, of ties the first."""
        return torch.where(open_, self.priority(tree), -torch.inf).argmax(0)
