"""A look at what a search would continue with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import SMCFailed
from ..handlers.filter_options import FilterOptions
from ..handlers.particle_messenger import ParticleMessenger
from ..handlers.pause_messenger import Paused
from ..handlers.resume_messenger import ResumeMessenger
from ..handlers.sweep import sweep
from ..particles.checkpoint import Checkpoint
from ..particles.run_scope import RunScope, run_scope
from ..particles.site_util import read_site
from ..particles.snapshot import Snapshot
from ..util.process_state import rng_state, set_rng_state


class GreedyMessenger(ParticleMessenger):
    """Every latent site has the mode of its prior; factors are scored, and nothing is resampled.

    :param int until: leave the model at the barrier after so many segments.
    """

    def __init__(self, num_particles: int, max_plate_nesting: int, until: int) -> None:
        super().__init__(FilterOptions(num_particles, max_plate_nesting, ess_threshold=0.0))
        self.until = until

    def propose(self, msg: Any) -> None:
        fn = read_site(msg).fn
        try:
            mode = fn.mode
        except NotImplementedError as error:
            raise ValueError(
                f"site {msg['name']!r} has a {type(fn).__name__}, which has no mode, and lookahead continues greedily: give the "
                "distribution a property mode, or leave out lookahead"
            ) from error
        # Of several modes a draw, as of a fair coin.
        msg["value"] = torch.where(mode.isnan(), fn.sample(), mode) if mode.is_floating_point() and bool(mode.isnan().any()) else mode

    def resample(self, state: Any, ess: Tensor) -> Any:
        self.system.record_barrier(state, ess)
        self.until -= 1
        if self.until == 0:
            raise Paused
        return state

    def check_alive(self) -> None:
        with suppress(SMCFailed):  # a prefix that cannot be continued is not chosen
            super().check_alive()


class Lookahead:
    """Scores of prefixes after ``steps`` more segments that continue them greedily and are then forgotten.

    The model is resumed from the barrier that the search has come to, as :meth:`SMC.iterate` does: what came before is neither drawn nor
    scored again. The random number generators are afterwards as they were.

    :param int steps: segments.
    :param RunScope scope: of the search's run.
    """

    def __init__(self, model: Callable[..., Any], steps: int, scope: RunScope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.steps, self.scope, self.args, self.kwargs = model, steps, scope, args, kwargs

    def __call__(self, snapshot: Snapshot, num_particles: int, max_plate_nesting: int) -> Tensor:
        """Log-weights ``[N, *plates]``.

        :param Snapshot snapshot: of the barrier.
        """
        rng = rng_state()
        messenger = GreedyMessenger(num_particles, max_plate_nesting, self.steps)
        start = Checkpoint({}, self.args, self.kwargs, snapshot, rng, {}, {}, complete=False)
        resume = ResumeMessenger(messenger, start, rng)
        try:
            with run_scope(self.scope), suppress(Paused):
                sweep(self.model, messenger, self.args, self.kwargs, resume=resume)
        finally:
            set_rng_state(rng)
        return messenger.system.weights.log_weights
