"""Particle Gibbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..handlers.ancestor_messenger import AncestorMessenger
from ..handlers.filter_options import FilterOptions
from ..handlers.particle_messenger import ParticleMessenger
from ..handlers.proposal_messenger import Proposals, check_given_values
from ..handlers.reference_messenger import ReferenceMessenger
from ..handlers.sweep import sweep
from ..particles.trajectory import Trajectory
from ..posterior.chain_posterior import PooledPosterior
from ..posterior.particle_posterior import ParticlePosterior
from ..resampling import ConditionalResampler, get_conditional_resampler
from ..util.checked import checked
from ..util.validation import check_count
from .replicate import replicate
from .trajectory_kernel import TrajectoryKernel


class ParticleGibbs(TrajectoryKernel):
    """Markov chain over trajectories: each iteration is a particle filter conditioned on the trajectory before it.

    Leaves the posterior invariant for any number of particles, every conditional resampling scheme and ESS threshold. One iteration of
    ``N`` particles costs what :class:`SMC` costs; with ``N = 1`` the chain never moves.

    Example::

        posterior = ParticleGibbs(model, num_particles=8).run(20, problem)    # all particles of all iterations
        pyro.infer.MCMC(ParticleGibbs(model, 8), num_samples=200).run(problem)            # Pyro's own driver

    Pyro's driver wants the same sites in every iteration: give it a model that always takes the same number of steps.

    With few particles all lineages soon coalesce with the reference, and its early steps hardly ever change. ``ancestor_sampling``
    breaks this: at each resampling the past of the reference's future is drawn again (see :class:`AncestorMessenger`), at the price of
    scoring that future after every particle's past.

    With ``num_references = K`` the state is K trajectories, each in its own conditional filter; the K filters run in one batch and
    their ``K N`` particles are pooled. They are K chains side by side: one filter that pins several lineages would leave the posterior
    invariant only if these never met. Under Pyro's driver the samples have a leading dimension K.

    :param model: as for :class:`SMC`.
    :param int num_particles: N, the reference included.
    :param resampler: ``"multinomial"``, ``"systematic"``, ``"stratified"``, ``"residual"``, or a scheme with ``conditional``.
    :param float ess_threshold: resample where ESS <= threshold * N.
    :param bool ancestor_sampling: draw new ancestors of the reference.
    :param int num_references: K.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    :raises ValueError: for arguments out of range.

    References

    [1] *Particle Markov chain Monte Carlo methods*, Christophe Andrieu, Arnaud Doucet, Roman Holenstein (2010).
    [2] *On particle Gibbs sampling*, Nicolas Chopin, Sumeetpal Singh (2015).
    [3] *Particle Gibbs with ancestor sampling*, Fredrik Lindsten, Michael Jordan, Thomas Schön (2014).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        resampler: str | ConditionalResampler = "multinomial",
        ess_threshold: float = 0.5,
        ancestor_sampling: bool = False,
        num_references: int = 1,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        super().__init__(model, proposals=proposals, max_plate_nesting=max_plate_nesting)
        check_count("num_references", num_references)
        check_given_values(proposals, everywhere=ancestor_sampling)
        nesting = max_plate_nesting + (num_references > 1)
        self.options = FilterOptions(num_particles, nesting, get_conditional_resampler(resampler), ess_threshold, proposals)
        self.ancestor_sampling = ancestor_sampling
        self.num_references = num_references
        self.reversible = not ancestor_sampling
        # K trajectories are K chains, which no other algorithm expects in the place of one.
        self.extended_state = num_references > 1  # type: ignore[misc]
        self._program = model if num_references == 1 else replicate(model, num_references, max_plate_nesting)

    def first_state(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A draw from an unconditional filter: ``{name: [*plates, *event]}``, with K references ``[K, *plates, *event]``."""
        return sweep(self._program, ParticleMessenger(self.options), args, kwargs).draw(dead=True)

    @torch.no_grad()
    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """One filter conditioned on a reference; with K references K filters, in a plate on the left of the model's own."""
        return sweep(self._program, self._messenger(reference, args, kwargs), args, kwargs)

    def transition(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        """One iteration: all particles (of all K filters as one population), and the next state."""
        posterior = self.sweep(state, *args, **kwargs)
        moved = posterior.draw(dead=True)
        moved.chain = state.chain.after(None)
        return self._side_by_side(posterior), moved

    def _messenger(self, reference: Trajectory, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReferenceMessenger:
        if not self.ancestor_sampling:
            return ReferenceMessenger(self.options, reference=reference)
        return AncestorMessenger(self.options, reference=reference, program=lambda: self._program(*args, **kwargs))

    def _side_by_side(self, posterior: ParticlePosterior) -> ParticlePosterior:
        """``K N`` particles of K filters, every filter with the same total weight."""
        if self.num_references == 1:
            return posterior
        parts = [ParticlePosterior(posterior.particles.of_leftmost(k)) for k in range(self.num_references)]
        return PooledPosterior(parts, [part.particles.weights.normalized.log() for part in parts], {})
