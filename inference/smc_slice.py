"""One pass of a particle filter over its model: all of it, or from one barrier to the next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .cost import CostMeter
from .handlers.pause_messenger import Paused, PauseMessenger
from .handlers.resume_messenger import ResumeMessenger
from .handlers.sweep import sweep
from .particles.checkpoint import Checkpoint
from .particles.snapshot import Snapshot
from .posterior.island_posterior import IslandPosterior
from .posterior.particle_posterior import ParticlePosterior
from .util.rng_state import rng_state

if TYPE_CHECKING:
    from .smc import SMC

TOKENS = "tokens_sampled"
"""The counter that ``max_tokens_total`` bounds."""


class Slice(PauseMessenger):
    """Runs the model, and is the handler that hears of its barriers.

    That handler is not an object apart: the two would refer to each other, and so keep every particle and the language model's caches in
    memory until Python looks for such circles.

    :param model: the model in its plates.
    :param Checkpoint start: where to go on; ``None`` for the beginning. One that was read from a file brings the state of the random number
        generators, others go on with the present one.
    :param bool one_step: stop at the next barrier.
    """

    def __init__(
        self,
        smc: SMC,
        model: Callable[..., Any],
        start: Checkpoint | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        one_step: bool,
    ) -> None:
        super().__init__(start.subsamples if start is not None else {})
        self.smc, self.model, self.start, self.args, self.kwargs, self.one_step = smc, model, start, args, kwargs, one_step
        self.messenger = smc._messenger
        self.meter = CostMeter()
        self.began = time.perf_counter()
        self.latest: ParticlePosterior | None = None  # of the last barrier, once somebody asked for it

    @torch.no_grad()
    def run(self) -> ParticlePosterior:
        """The posterior at the end of the pass. An exception carries that of the last barrier as ``partial_posterior``."""
        resume = None
        if self.start is not None:
            self.rng = self.start.rng if self.start.caches is not None else rng_state()
            resume = ResumeMessenger(self.messenger, self.start, self.rng)
        with self.meter:
            try:
                joint = sweep(self.model, self.messenger, self.smc.proposals, self.args, self.kwargs, pause=self, resume=resume)
                if self.smc.audit:
                    joint.audit = self.smc._audit(joint, self.model, self.args, self.kwargs)
                return self._dressed(joint, self._checkpoint(self.messenger.snapshot(joint.value), rng_state(), complete=True))
            except Paused:
                posterior = self.partial()
                assert posterior is not None
                return posterior
            except BaseException as error:
                error.partial_posterior = self.partial()  # type: ignore[attr-defined]
                raise

    def partial(self) -> ParticlePosterior | None:
        """The posterior of the last barrier, with the cost so far; that of the start if there was none since."""
        last = self.messenger.last
        if last is None:
            return None if self.start is None else self._dressed(self.start.snapshot.posterior(), self.start)
        if self.latest is None:
            self.latest = self._dressed(last.posterior(), self._checkpoint(last, self.rng, complete=False))
        self.latest.cost = self._cost()
        return self.latest

    def leaves(self) -> bool:
        self.latest = None
        if self.smc.callback is not None:
            posterior = self.partial()
            assert posterior is not None
            self.smc.callback(posterior)
        return self.one_step or self.over_budget

    @property
    def over_budget(self) -> bool:
        """Whether the run ends at this barrier. Lanes that are all done sample nothing more."""
        budget = self.smc.max_tokens_total
        if budget is None or (self.start.cost if self.start is not None else {}).get(TOKENS, 0) + self.meter.totals[TOKENS] < budget:
            return False
        done = self.messenger._done
        return done is None or not bool(done.all())

    def _cost(self) -> dict[str, float]:
        totals: Counter[str] = Counter(self.start.cost if self.start is not None else {})
        totals.update(self.meter.totals)
        totals["seconds"] += time.perf_counter() - self.began  # type: ignore[assignment]
        return dict(totals)

    def _checkpoint(self, snapshot: Snapshot, rng: dict[str, Any], complete: bool) -> Checkpoint:
        return Checkpoint(self.smc.settings, self.args, self.kwargs, snapshot, rng, self.subsamples, self._cost(), complete)

    def _dressed(self, joint: ParticlePosterior, checkpoint: Checkpoint) -> ParticlePosterior:
        """What the user gets: islands pooled, with cost and checkpoint."""
        joint.complete, joint.cost, joint.checkpoint = checkpoint.complete, dict(checkpoint.cost), checkpoint
        return joint if self.smc.islands == 1 else IslandPosterior(joint)
