"""Best-first search."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..cost import CostMeter
from ..errors import SMCFailed, attach_partial
from ..handlers.prefix_messenger import Extension, PrefixMessenger, extend
from ..handlers.replay_messenger import KnownValue
from ..handlers.sweep import sweep
from ..particles.pytree import take
from ..particles.run_scope import RunScope, run_scope
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from ..util.validation import check_count

NAME = "best-first search"
_REASON = "it follows the best prefix alone, and that is no draw from the posterior"


class Frontier:
    """The prefixes that a search has drawn, ``M`` of each population.

    :ivar Tensor log_v: ``[M, *plates]`` cumulative log-weights.
    :ivar Tensor depth: ``[M, *plates]`` segments.
    :ivar Tensor done: ``[M, *plates]``: complete executions.
    :ivar Tensor open: ``[M, *plates]``: not yet popped.
    """

    def __init__(self) -> None:
        self.log_v: Tensor
        self.depth: Tensor
        self.done: Tensor
        self.open: Tensor
        self.extensions: list[Extension] = []
        self.barriers: dict[str, int] = {}

    def add(self, drawn: Extension, depth: Tensor, running: Tensor) -> None:
        """Children of the prefixes popped last.

        :param Tensor depth: ``[1, *plates]`` of their parents.
        :param Tensor running: ``[*plates]``: populations that still search; the others get none.
        """
        at = depth.clamp(max=len(drawn.done) - 1)[None].expand(1, *drawn.done.shape[1:])
        log_v, done = drawn.log_weights.gather(0, at)[0], drawn.done.gather(0, at)[0]
        new = [log_v, (depth + 1).expand_as(log_v), done, running & (log_v > -torch.inf)]
        if self.extensions:
            new = [torch.cat(pair) for pair in zip((self.log_v, self.depth, self.done, self.open), new, strict=True)]
        self.log_v, self.depth, self.done, self.open = new
        self.extensions.append(drawn)
        self.barriers.update(drawn.barriers)

    def known(self, index: Tensor) -> dict[str, KnownValue]:
        """The values of prefixes ``index [K, *plates]``."""
        depth, found = self.depth.gather(0, index), {}
        for name, barriers in self.barriers.items():
            like = next(each.values[name] for each in self.extensions if name in each.values)
            values = torch.cat([each.values.get(name, torch.zeros_like(like)) for each in self.extensions])
            found[name] = KnownValue(take(values, index), barriers < depth)
        return found


class BestFirst:
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
    :param callback: called after each iteration with the :class:`SearchPosterior` of the continuations that it drew.
    :raises ValueError: for arguments out of range.

    References

    [1] *A\\*-Decoding: Token-Efficient Inference Scaling*, Giannis Chatziveroglou (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        *,
        expand: int = 4,
        budget: int = 64,
        step_cost: float = 0.0,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("expand", expand)
        check_count("budget", budget)
        check_count("max_plate_nesting", max_plate_nesting, 0)
        if budget < expand:
            raise ValueError(f"budget must be at least expand, the continuations of a single prefix ({expand}), got {budget}")
        if not isinstance(step_cost, int | float) or not 0.0 <= step_cost < float("inf"):
            raise ValueError(f"step_cost must be a finite number of at least 0, got {step_cost!r}")
        self.model, self.expand, self.budget, self.step_cost = model, expand, budget, step_cost
        self.max_plate_nesting, self.callback = max_plate_nesting, callback

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> SearchPosterior:
        """Search ``model(*args, **kwargs)``.

        :returns: ``expand`` candidates of each problem: the answer, which has all weight, then the best other complete executions of the
            frontier, and where these are fewer the answer again.

        An exception in the middle, Ctrl-C included, carries what was found so far as ``partial_posterior``.

        :raises SMCFailed: if all continuations of all problems have score minus infinity.
        """
        start = time.perf_counter()
        frontier = Frontier()
        with CostMeter() as meter, run_scope(RunScope(replays=True)):
            try:
                best = self.search(frontier, args, kwargs)
                result = self.found(frontier, best, args, kwargs)
            except BaseException as error:
                attach_partial(error, lambda: self.salvage(frontier, args, kwargs))
                if error.partial_posterior is not None:  # type: ignore[attr-defined]
                    error.partial_posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}  # type: ignore[attr-defined]
                raise
        result.cost = {**meter.totals, "seconds": time.perf_counter() - start}
        return result

    def search(self, frontier: Frontier, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The answer ``[*plates]`` of each population among the frontier's prefixes."""
        nesting = self.max_plate_nesting
        drawn = extend(self.model, {}, self.expand, nesting, args, kwargs, until=1)
        running = torch.ones_like(drawn.done[0, 0])
        frontier.add(drawn, torch.zeros_like(drawn.done[0, :1], dtype=torch.long), running)
        best = torch.zeros_like(running, dtype=torch.long)
        for number in range(1, self.budget // self.expand + 1):
            self.report(drawn)
            running = running & self.alive(frontier, drawn)
            popped = self.pop(frontier)
            best = torch.where(running, popped, best)
            running = running & ~frontier.done.gather(0, best[None])[0]
            if not bool(running.any()) or number == self.budget // self.expand:
                break
            frontier.open = frontier.open.scatter(0, best[None], frontier.open.gather(0, best[None]) & ~running)
            depth = frontier.depth.gather(0, best[None])
            known = frontier.known(best[None].expand(self.expand, *best.shape))
            until = int(torch.where(running, depth[0], 0).max()) + 1
            drawn = extend(self.model, known, self.expand, nesting, args, kwargs, until)
            frontier.add(drawn, depth, running)
        complete = frontier.open & frontier.done
        finished = torch.where(complete, self.priority(frontier), -torch.inf).argmax(0)
        return torch.where(running & complete.any(0), finished, best)

    def priority(self, frontier: Frontier) -> Tensor:
        """``[M, *plates]``, minus f up to a monotone map."""
        if self.step_cost == 0.0:
            return frontier.log_v
        return frontier.log_v.exp() - self.step_cost * frontier.depth

    def pop(self, frontier: Frontier) -> Tensor:
        """The best open prefix ``[*plates]``, of ties the first."""
        return torch.where(frontier.open, self.priority(frontier), -torch.inf).argmax(0)

    def alive(self, frontier: Frontier, drawn: Extension) -> Tensor:
        """``[*plates]``: populations that have something to continue, or an answer.

        :raises SMCFailed: if none has.
        """
        alive = frontier.open.any(0)
        if not bool(alive.any()):
            raise SMCFailed(list(drawn.barriers)[-1], len(frontier.log_v), alive.numel())
        return alive

    def report(self, drawn: Extension) -> None:
        if self.callback is not None and drawn.partial is not None:
            self.callback(self.as_search(drawn.partial))

    @staticmethod
    def as_search(found: ParticlePosterior) -> SearchPosterior:
        return SearchPosterior.of(found, scores=found.particles.weights.log_weights, method=NAME, reason=_REASON)

    def found(self, frontier: Frontier, best: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        """The candidates, given the answer ``best [*plates]``."""
        others = frontier.done & frontier.open
        others = others.scatter(0, best[None], False)
        index = torch.where(others, self.priority(frontier), -torch.inf).argsort(dim=0, descending=True, stable=True)[: self.expand - 1]
        known = torch.cat([torch.ones_like(best[None], dtype=torch.bool), others.gather(0, index)])
        index = torch.where(known, torch.cat([best[None], index]), best)
        messenger = PrefixMessenger(len(index), self.max_plate_nesting, frontier.known(index))
        found = sweep(self.model, messenger, args, kwargs)
        scores = found.particles.weights.log_weights
        weights = torch.full_like(scores, -torch.inf)
        weights[0] = torch.where(scores[0] > -torch.inf, 0.0, -torch.inf)
        return SearchPosterior.of(found, Weights(weights), scores=scores, method=NAME, reason=_REASON, decisive=True)

    def salvage(self, frontier: Frontier, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior | None:
        """The best complete executions if every population has some, else the continuations drawn last."""
        if not frontier.extensions:
            return None
        complete = frontier.done & frontier.open
        if bool(complete.any(0).all()):
            best = torch.where(complete, self.priority(frontier), -torch.inf).argmax(0)
            with suppress(Exception, KeyboardInterrupt):  # what stopped the run may stop this, too
                return self.found(frontier, best, args, kwargs)
        last = frontier.extensions[-1].partial
        return None if last is None else self.as_search(last)
