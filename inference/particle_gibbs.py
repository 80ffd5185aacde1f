"""Particle Gibbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from .chain_posterior import ChainPosterior
from .cost import CostMeter
from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .proposal_messenger import Proposals
from .reference_messenger import ReferenceMessenger
from .resampling import ConditionalResampler, get_conditional_resampler
from .smc import check_particles
from .sweep import sweep


class ParticleGibbs(MCMCKernel):
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

    transforms: dict[str, Any] = {}  # noqa: RUF012 - what Pyro's MCMC looks for

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
        self.model = model
        self.num_particles = num_particles
        self.resampler = get_conditional_resampler(resampler)
        self.ess_threshold = ess_threshold
        self.proposals = proposals
        self.max_plate_nesting = max_plate_nesting
        self._initial_params: dict[str, Tensor] | None = None

    def run(self, num_samples: int, *args: Any, warmup_steps: int = 0, **kwargs: Any) -> ChainPosterior:
        """A chain of ``num_samples`` iterations over ``model(*args, **kwargs)``.

        :param int warmup_steps: iterations before those that are kept; the first starts from an unconditional filter.
        :returns: all particles of all kept iterations, each iteration with the same total weight (Rao-Blackwellised). An exception in the
            middle, Ctrl-C included, carries those so far as ``partial_posterior``.
        :raises ValueError: if ``num_samples`` is less than 1.
        """
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
        kept: list[ParticlePosterior] = []
        with CostMeter() as meter:
            try:
                reference = self.sweep(None, *args, **kwargs).draw()
                for i in range(warmup_steps + num_samples):
                    posterior = self.sweep(reference, *args, **kwargs)
                    reference = posterior.draw()
                    if i >= warmup_steps:
                        kept.append(posterior)
            except BaseException as error:
                error.partial_posterior = ChainPosterior(kept, dict(meter.totals)) if kept else None  # type: ignore[attr-defined]
                raise
        return ChainPosterior(kept, dict(meter.totals))

    @torch.no_grad()
    def sweep(self, reference: dict[str, Tensor] | None, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """One filter, conditioned on a reference or free."""
        size = self.num_particles, self.max_plate_nesting, self.resampler, self.ess_threshold
        messenger = ParticleMessenger(*size) if reference is None else ReferenceMessenger(*size, reference=reference)
        return sweep(self.model, messenger, self.proposals, args, kwargs)

    # Pyro's MCMCKernel --------------------------------------------------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._args, self._kwargs = args, kwargs
        if self._initial_params is None:
            self._initial_params = self.sweep(None, *args, **kwargs).draw()

    @property
    def initial_params(self) -> dict[str, Tensor] | None:
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.sweep(params, *self._args, **self._kwargs).draw()

    def logging(self) -> dict[str, str]:
        return {}

    def diagnostics(self) -> dict[str, Any]:
        return {}

    def cleanup(self) -> None:
        self._args, self._kwargs = (), {}
