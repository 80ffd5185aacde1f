"""Importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .handlers.proposal_messenger import Proposals
from .posterior.particle_posterior import ParticlePosterior
from .smc import SMC


class Importance(SMC):
    """Importance sampling, vectorised: one execution of the model for all particles (Pyro's ``Importance`` takes two per sample).

    The same sweep as :class:`SMC` without resampling. Best-of-N, weighted best-of-N and self-consistency are votes over its posterior.

    :param model: as for :class:`SMC`; barriers are allowed and do nothing.
    :param int num_particles: N.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param bool audit: as for :class:`SMC`.
    :param bool record_log_probs: as for :class:`SMC`.
    :param callback: as for :class:`SMC`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
        audit: bool = False,
        record_log_probs: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(
            model,
            num_particles,
            ess_threshold=0.0,
            proposals=proposals,
            max_plate_nesting=max_plate_nesting,
            audit=audit,
            record_log_probs=record_log_probs,
            callback=callback,
        )
