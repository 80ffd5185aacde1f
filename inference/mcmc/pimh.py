"""Particle independent Metropolis-Hastings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..handlers.proposal_messenger import Proposals
from ..resampling import Resampler
from .particle_mh import ParticleMH


class PIMH(ParticleMH):
    """Particle independent Metropolis-Hastings: propose a new run of :class:`SMC`, accept it or keep the old one.

    A filter with evidence estimate Z' replaces one with Z with probability ``min(1, Z' / Z)``, for each independent population on its own.
    The posterior is invariant for any number of particles and every resampling scheme; more particles give a higher acceptance rate. The
    result keeps all particles of the filter that each iteration ends with.

    Example::

        posterior = PIMH(model, num_particles=16).run(50, problem)

    :param model: as for :class:`SMC`.
    :param int num_particles: N.
    :param resampler: as for :class:`SMC`.
    :param float ess_threshold: as for :class:`SMC`.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    :raises ValueError: for arguments out of range.

    References

    [1] *Particle Markov chain Monte Carlo methods*, Christophe Andrieu, Arnaud Doucet, Roman Holenstein (2010), section 4.2.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        resampler: str | Resampler = "systematic",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        super().__init__(
            model,
            num_particles,
            resampler=resampler,
            ess_threshold=ess_threshold,
            proposals=proposals,
            max_plate_nesting=max_plate_nesting,
        )
