"""What searches on the tree of prefixes share: a run, its cost, its result, and what an interruption leaves."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..cost import CostMeter
from ..errors import SMCFailed, attach_partial
from ..handlers.filter_options import FilterOptions
from ..handlers.prefix_messenger import PrefixMessenger
from ..handlers.sweep import sweep
from ..particles.run_scope import RunScope, run_scope
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from ..util.validation import check_optional_count
from .prefix_tree import PrefixTree

TOKENS = "tokens_sampled"


class PrefixSearch(ABC):
    """A search that continues prefixes of any length, wherever in the tree they are.

    :param model: as for :class:`SMC`.
    :param int num_particles: children drawn in one run of the model, and candidates of the result.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a tree of its own.
    :param int max_tokens_total: draw nothing more once so many tokens have been sampled (the counter ``tokens_sampled``).
    :param callback: called with the :class:`SearchPosterior` of the children drawn last, each time that some were drawn.
    :cvar str name: of the search, for its posterior.
    :cvar str reason: why it has no evidence.
    """

    name: ClassVar[str]
    reason: ClassVar[str] = "it follows the prefixes that look best, and these are no draws from the posterior"

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        max_plate_nesting: int = 0,
        max_tokens_total: int | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_optional_count("max_tokens_total", max_tokens_total)
        self.model, self.max_tokens_total, self.callback = model, max_tokens_total, callback
        self.options = FilterOptions(num_particles, max_plate_nesting, ess_threshold=0.0)

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Nodes of a tree at most."""

    @abstractmethod
    def search(self, tree: PrefixTree, spent: Callable[[], bool]) -> Tensor:
        """Grow the tree, and say which node ``[*plates]`` of each population is the answer.

        :param spent: whether nothing more may be drawn.
        """

    def order(self, tree: PrefixTree) -> Tensor:
        """``[M, *plates]``: by which the result's other candidates are chosen, the greatest first."""
        return tree.solution

    def solutions(self, tree: PrefixTree) -> Tensor:
        """:meth:`order` of nodes that have a complete execution, -inf of others."""
        return torch.where(tree.solution > -torch.inf, self.order(tree), -torch.inf)

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> SearchPosterior:
        """Search ``model(*args, **kwargs)``.

        :returns: candidates of each problem: the answer, which has all weight, then the best other complete executions that were found, and
            where these are fewer the answer again. An answer that is no complete execution yet is completed by the model.

        An exception in the middle, Ctrl-C included, carries what was found so far as ``partial_posterior``.

        :raises SMCFailed: if all that was drawn for all problems has score minus infinity.
        """
        start = time.perf_counter()
        tree = PrefixTree(self.model, self.capacity, self.options.max_plate_nesting, args, kwargs)
        with CostMeter() as meter, run_scope(RunScope(replays=True)):
            try:
                best = self.search(tree, lambda: self.max_tokens_total is not None and meter.totals[TOKENS] >= self.max_tokens_total)
                result = self.found(tree, best)
            except BaseException as error:
                attach_partial(error, lambda: self.salvage(tree))
                if error.partial_posterior is not None:  # type: ignore[attr-defined]
                    error.partial_posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}  # type: ignore[attr-defined]
                raise
        result.cost = {**meter.totals, "seconds": time.perf_counter() - start}
        return result

    def report(self, tree: PrefixTree) -> None:
        """Tell the caller what was drawn."""
        if self.callback is not None and tree.drawn is not None and tree.drawn.partial is not None:
            self.callback(self.as_search(tree.drawn.partial))

    def require_live(self, tree: PrefixTree, alive: Tensor) -> None:
        """
        :param Tensor alive: ``[*plates]``: populations that have something to continue, or an answer.
        :raises SMCFailed: if none has.
        """
        if not bool(alive.any()):
            assert tree.drawn is not None
            raise SMCFailed(list(tree.drawn.barriers)[-1], tree.size - 1, alive.numel())

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        return SearchPosterior.of(found, scores=found.particles.weights.log_weights, method=self.name, reason=self.reason)

    def found(self, tree: PrefixTree, best: Tensor) -> SearchPosterior:
        """The candidates, given the answer ``best [*plates]``."""
        unfinished = tree.solution.gather(0, best[None])[0] == -torch.inf
        if bool(unfinished.any()):
            best = torch.where(unfinished, tree.grow(best[None], unfinished, rollout=True)[0], best)
        others = self.solutions(tree).scatter(0, best[None], -torch.inf)
        index = others.argsort(dim=0, descending=True, stable=True)[: self.options.num_particles - 1]
        nodes = torch.cat([best[None], torch.where(others.gather(0, index) > -torch.inf, index, best)])
        messenger = PrefixMessenger(len(nodes), self.options.max_plate_nesting, tree.known(nodes, whole=True))
        found = sweep(tree.model, messenger, tree.args, tree.kwargs)
        scores = found.particles.weights.log_weights
        weights = torch.full_like(scores, -torch.inf)
        weights[0] = torch.where(scores[0] > -torch.inf, 0.0, -torch.inf)
        return SearchPosterior.of(found, Weights(weights), scores=scores, method=self.name, reason=self.reason, decisive=True)

    def salvage(self, tree: PrefixTree) -> SearchPosterior | None:
        """The best complete executions if every population has some, else the children drawn last."""
        if tree.drawn is None:
            return None
        order = self.solutions(tree)
        if bool((order > -torch.inf).any(0).all()):
            with suppress(Exception, KeyboardInterrupt):  # what stopped the run may stop this, too
                return self.found(tree, order.argmax(0))
        return None if tree.drawn.partial is None else self.as_search(tree.drawn.partial)
