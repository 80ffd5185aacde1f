"""Particle Gibbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .proposal_messenger import Proposals
from .reference_messenger import ReferenceMessenger
from .resampling import ConditionalResampler, get_conditional_resampler
from .smc import check_particles
from .sweep import sweep
from .trajectory import Trajectory
from .trajectory_kernel import TrajectoryKernel


class ParticleGibbs(TrajectoryKernel):
    """Markov chain over trajectories: each iteration is a particle filter conditioned on the trajectory before it.

    Leaves the posterior invariant for any number of particles, every conditional resampling scheme and ESS threshold. One iteration of
    ``N`` particles costs what :class:`SMC` costs; with ``N = 1`` the chain never moves.

    Example::

        posterior = ParticleGibbs(model, num_particles=8).run(num_samples=20, problem)    # all particles of all iterations
        pyro.infer.MCMC(ParticleGibbs(model, 8), num_samples=200).run(problem)            # Pyro's own driver

    Pyro's driver wants the same sites in every iteration: give it a model that always makes the same number of rounds.

    :param model: as for :class:`SMC`.
    :param int num_particles: N, the reference included.
    :param resampler: ``"multinomial"``, ``"systematic"``, ``"stratified"``, ``"residual"``, or a scheme with ``conditional``.
    :param float ess_threshold: resample where ESS <= threshold * N.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a chain of its own.
    :raises ValueError: for arguments out of range.

    References

    [1] *Particle Markov chain Monte Carlo methods*, Christophe Andrieu, Arnaud Doucet, Roman Holenstein (2010).
    [2] *On particle Gibbs sampling*, Nicolas Chopin, Sumeetpal Singh (2015).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        resampler: str | ConditionalResampler = "multinomial",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        check_particles(model, num_particles, ess_threshold, max_plate_nesting)
        super().__init__(model, proposals=proposals, max_plate_nesting=max_plate_nesting)
        self.num_particles = num_particles
        self.resampler = get_conditional_resampler(resampler)
        self.ess_threshold = ess_threshold

    @torch.no_grad()
    def start(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A draw from an unconditional filter."""
        messenger = ParticleMessenger(self.num_particles, self.max_plate_nesting, self.resampler, self.ess_threshold)
        return sweep(self.model, messenger, self.proposals, args, kwargs).draw()

    @torch.no_grad()
    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """One filter conditioned on a reference."""
        messenger = ReferenceMessenger(self.num_particles, self.max_plate_nesting, self.resampler, self.ess_threshold, reference=reference)
        return sweep(self.model, messenger, self.proposals, args, kwargs)
