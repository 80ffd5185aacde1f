"""Speculative rejection."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cost import CostMeter
from ..handlers.filter_options import FilterOptions
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..particles.site_util import draw_where
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from ..util.validation import unknown_name
from .tree_search import TreeSearch

_ROUNDING = 1e-9
"""Of shares: 0.7 of 10 are 7."""
UNITS = {"steps": 1, "tokens": 32}
"""What marks may count, and the first mark by default."""


class RejectionMessenger(SearchMessenger):
    """Of the unfinished particles of each population those with the best scores are kept at each mark; the others draw nothing more."""

    def __init__(self, options: FilterOptions, keep: float, marks: Iterator[int], unit: str) -> None:
        super().__init__(options, "speculative rejection")
        self.keep, self.marks, self.unit = keep, marks, unit

    def __enter__(self) -> RejectionMessenger:
        self.rejected: Tensor | None = None  # [N, *plates]
        self.stopped: Tensor | None = None  # [N, *plates] those, and finished ones
        self.past: list[Candidates] = []
        self.active: Candidates | None = None
        self.mark = next(self.marks, None)
        self.meter = CostMeter()
        self.meter.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.meter.__exit__(*args)

    def propose(self, msg: Any) -> None:
        if self.rejected is None or not bool(self.rejected.any()):
            super().propose(msg)
        else:
            msg["value"] = draw_where(msg["fn"], ~self.rejected.expand(msg["fn"].batch_shape))

    def at_mark(self, done: Tensor) -> bool:
        """Whether the next mark has been passed."""
        count = len(self.system.records) + 1 if self.unit == "steps" else self.meter.totals["tokens_sampled"] / done.numel()
        passed = False
        while self.mark is not None and count >= self.mark:
            passed, self.mark = True, next(self.marks, None)
        return passed

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        if self.stopped is None or self.rejected is None:
            self.stopped = self.rejected = torch.zeros_like(done)
        running = ~self.stopped & ~done & (log_weights > -torch.inf)
        dropped = running & ~self.kept(log_weights, running) if self.at_mark(done) else torch.zeros_like(running)
        stopping = ~self.stopped & (dropped | ~running)
        weights = torch.where(self.rejected | dropped, -torch.inf, log_weights)
        self.past.append(self.candidates(stopping, log_weights=torch.where(done, weights, -torch.inf)))
        self.active = self.candidates(running & ~dropped)
        self.rejected, self.stopped = self.rejected | dropped, self.stopped | stopping
        # Where nothing runs any more, what was rejected repeats a finished particle, so that the model may see that all is done.
        over = done.any(0) & self.stopped.all(0)
        ancestors = torch.where(over & ~done, done.to(torch.uint8).argmax(0), self.system.numbers)
        return ancestors, weights

    def kept(self, log_weights: Tensor, running: Tensor) -> Tensor:
        """``[N, *plates]``: the share of the running particles with the greatest scores, one at least; of equal ones the first."""
        best_first = torch.where(running, log_weights, -torch.inf).argsort(dim=0, descending=True, stable=True)
        return best_first.argsort(dim=0) < (self.keep * running.sum(0) - _ROUNDING).ceil()

    def finalists(self) -> Candidates:
        assert self.active is not None
        return self._best(self.each_once([*self.past, self.active]))

    def finished(self) -> Candidates | None:
        if self.active is None:
            return None
        found = self.each_once([*self.past, self.active._replace(log_weights=torch.full_like(self.active.log_weights, -torch.inf))])
        return self._best(found) if bool((found.log_weights > -torch.inf).any(0).all()) else None

    def _best(self, found: Candidates) -> Candidates:
        """All weight on the candidate with the greatest, of equal ones the first; those without weight repeat it."""
        best, own = found.log_weights.argmax(0, keepdim=True), self.system.numbers
        taken = found.take(torch.where(found.log_weights > -torch.inf, own, best))
        return taken._replace(log_weights=torch.where(own == best, taken.log_weights, -torch.inf))

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        return SearchPosterior.of(found, scores=found.particles.weights.log_weights, method=self.method, decisive=True)

    def result(self, chosen: Candidates, replayed: ParticlePosterior) -> SearchPosterior:
        found = super().result(chosen, replayed)
        found.decisive = True
        return found


class SpeculativeRejection(TreeSearch):
    """Best-of-N that drops completions with low scores while they are written.

    N completions are written side by side. Each time a mark is passed, only the share ``keep`` of a problem's unfinished completions with
    the best scores continues (rounded up, so one at least; of equal scores the first). The others write nothing more, and their places in
    the batch cost nothing. Finished completions stay. The answer is the best of these and of those that were kept until the end of the
    model. With ``keep=1`` it is :class:`BestOfN`.

    The paper drops completions when the memory of the device is full; marks are numbers that do not depend on the device, and they count
    ``steps`` of a completion, or ``tokens`` sampled by the whole run for each completion that was begun. They are looked at when a step
    ends. By default each mark is twice the one before: at 1, 2, 4, .. steps with ``keep=0.5`` the completions of 4 steps cost half as much
    as those of best-of-N.

    The result has the candidates that were not dropped with their scores, and in the places of the others the best again; only the best
    has a weight.

    :param model: as for :class:`SMC`.
    :param int num_particles: N.
    :param float keep: share of the unfinished completions kept at each mark.
    :param marks: increasing numbers; ``None`` for 1, 2, 4, .. steps, or 32, 64, 128, .. tokens.
    :param str unit: of the marks, ``steps`` or ``tokens``.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem drops its own completions.
    :param bool audit: as for :class:`SMC`.
    :param callback: called with the posterior of the present particles after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Fast Best-of-N Decoding via Speculative Rejection*, Hanshi Sun et al. (2024).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        keep: float = 0.5,
        marks: Sequence[int] | None = None,
        unit: str = "steps",
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be a share in (0, 1], got {keep!r}")
        if unit not in UNITS:
            raise unknown_name("unit", unit, UNITS)
        numbers = None if marks is None else list(marks)
        if numbers is not None and not (
            all(isinstance(m, int) and m > 0 for m in numbers) and all(a < b for a, b in itertools.pairwise(numbers))
        ):
            raise ValueError(f"marks must be increasing integers above 0, got {marks!r}")
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, audit=audit, callback=callback)
        self.keep, self.marks, self.unit = keep, numbers, unit

    def messenger(self) -> RejectionMessenger:
        doubling = (UNITS[self.unit] * 2**k for k in itertools.count())
        return RejectionMessenger(self.options, self.keep, doubling if self.marks is None else iter(self.marks), self.unit)
