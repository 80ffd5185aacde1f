"""Tempered sequential Monte Carlo."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .cost import CostMeter
from .errors import SMCFailed
from .handlers.filter_options import FilterOptions
from .handlers.particle_messenger import ParticleMessenger
from .handlers.sweep import sweep
from .handlers.temper_messenger import TemperMessenger
from .mcmc.replicate import Kernel, replica_kernel
from .mcmc.suffix_mh import SuffixMH
from .particles.history import ResamplingRecord
from .particles.pytree import take_one
from .particles.run_scope import RunScope, run_scope
from .particles.trajectory import Trajectory
from .particles.weights import Weights
from .posterior.tempered_posterior import Stage, TemperedPosterior
from .resampling import Resampler, get_resampler
from .util.checked import checked
from .util.validation import check_count, check_particles

_HALVINGS = 60
"""Bisection down to the spacing of float64."""


class TemperedSMC:
    """Moves a population of whole executions from the prior to the posterior by raising the power of the likelihood from 0 to 1.

    The targets on the way are ``pi_b(x)``, in proportion to ``p(x) p(y | x)^b``. Each stage raises b: the weights are multiplied by
    ``p(y | x)^(b' - b)``, populations of low effective sample size are resampled, and every particle is moved by a kernel that leaves
    ``pi_b'`` invariant. Unlike :class:`SMC`, which cuts executions at their barriers, it needs none, and is not misled by early factors
    that say little about late ones.

    Example::

        posterior = TemperedSMC(model, num_particles=64).run(data)
        posterior.log_evidence, posterior.betas, posterior.ess, posterior.move_rates
        TemperedSMC(model, 64, betas=[0.1, 0.4, 1.0], kernel=functools.partial(ParticleGibbs, num_particles=4)).run(data)

    The evidence estimate is that of the whole path, and unbiased where the ladder is given. An adaptive ladder depends on the particles,
    which gives the estimate a bias that vanishes as their number grows.

    :param model: as for :class:`SMC`; barriers matter only to the kernel.
    :param int num_particles: N, executions of the model at a time (the default kernel runs two for each).
    :param betas: increasing powers of the likelihood that end at 1, or ``"adaptive"``: each next power is the one at which the effective
        sample size of the updated weights falls to ``ess_threshold * N``, for each independent population on its own.
    :param kernel: ``kernel(model, max_plate_nesting=...)`` makes the kernel of the moves, e.g. :class:`SuffixMH` or
        ``functools.partial(ParticleGibbs, num_particles=4)``. The first particles are drawn from its proposals, if it has any.
    :param int num_moves: moves of each particle in each stage.
    :param float ess_threshold: resample where ESS <= threshold * N; 0 never does (annealed importance sampling), for given ladders only.
    :param resampler: as for :class:`SMC`.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the :class:`TemperedPosterior` so far after each stage.
    :raises ValueError: for arguments out of range, or a kernel whose state is more than a trajectory.

    References

    [1] *Sequential Monte Carlo samplers*, Pierre Del Moral, Arnaud Doucet, Ajay Jasra (2006).
    [2] *Inference for Lévy-driven stochastic volatility models via adaptive sequential Monte Carlo*, Ajay Jasra, David Stephens,
    Arnaud Doucet, Theodoros Tsagaris (2011).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        betas: str | Sequence[float] = "adaptive",
        kernel: Kernel = SuffixMH,
        num_moves: int = 1,
        ess_threshold: float = 0.5,
        resampler: str | Resampler = "systematic",
        max_plate_nesting: int = 0,
        callback: Callable[[TemperedPosterior], None] | None = None,
    ) -> None:
        check_particles(num_particles, ess_threshold, max_plate_nesting)
        check_count("num_moves", num_moves, 0)
        self.model = model
        self.num_particles = num_particles
        self.betas = _check_ladder(betas, ess_threshold)
        self.kernel = kernel
        self.num_moves = num_moves
        self.ess_threshold = ess_threshold
        self.resampler = get_resampler(resampler)
        self.max_plate_nesting = max_plate_nesting
        self.callback = callback
        self.proposals = replica_kernel(kernel, model, num_particles, max_plate_nesting).proposals

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> TemperedPosterior:
        """All stages over ``model(*args, **kwargs)``.

        An exception in the middle, Ctrl-C included, carries the posterior of the last stage as ``partial_posterior``: its target is
        tempered by the last of its :attr:`~TemperedPosterior.betas`.

        :raises SMCFailed: if all particles of all populations have weight zero.
        """
        start = time.perf_counter()
        partial: TemperedPosterior | None = None
        with CostMeter() as meter, run_scope(RunScope(replays=True)):
            try:
                for posterior in self._stages(args, kwargs):
                    partial = posterior
                    posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}
                    if self.callback is not None:
                        self.callback(posterior)
            except BaseException as error:
                error.partial_posterior = partial  # type: ignore[attr-defined]
                raise
        assert partial is not None
        return partial

    def _stages(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[TemperedPosterior]:
        """Reweight, resample, move: chapter 17 of Chopin & Papaspiliopoulos (2020), with the ESS of [2]."""
        options = FilterOptions(self.num_particles, self.max_plate_nesting, ess_threshold=0.0, proposals=self.proposals)
        drawn = sweep(TemperMessenger(likelihood=0.0)(self.model), ParticleMessenger(options), args, kwargs)
        prior = drawn.particles
        particles = Trajectory(drawn.sites, length=prior.lengths, log_likelihood=prior.log_likelihood, value=prior.value)
        _check_likelihood(particles.log_likelihood)
        weights = prior.weights
        beta = torch.zeros_like(weights.log_mean)
        stages: list[Stage] = []
        for stage in itertools.count():
            assert particles.log_likelihood is not None
            before, beta = beta, self.next_beta(stage, weights, particles.log_likelihood, beta)
            weights = self.reweight(weights, particles.log_likelihood, beta - before)
            self._check_alive(weights, beta)
            log_evidence = weights.log_mean
            record, weights, particles = self.resample(weights, particles)
            particles, move_rate = self.move(particles, beta, args, kwargs)
            stages.append(Stage(beta, record, log_evidence, move_rate))
            yield TemperedPosterior(particles, weights, prior.plate_dims, list(stages))
            if bool((beta >= 1).all()):
                return

    def next_beta(self, stage: int, weights: Weights, log_likelihood: Tensor, beta: Tensor) -> Tensor:
        """``[*plates]``: the next power, given or found by bisection on the effective sample size of the updated weights."""
        if self.betas is not None:
            return torch.full_like(beta, self.betas[stage])
        target = self.ess_threshold * self.num_particles

        def suffices(power: Tensor) -> Tensor:
            return self.reweight(weights, log_likelihood, power - beta).ess >= target

        # The upper end of the bracket: there the ESS is low enough to resample, and the power has grown.
        low, high = beta, torch.ones_like(beta)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = suffices(middle)
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        high = torch.maximum(high, torch.nextafter(beta, torch.ones_like(beta)))
        following = torch.where(suffices(torch.ones_like(beta)), 1.0, high)
        # Weights that are too uneven already, as those of proposals may be, are resampled before the power grows.
        following = torch.where((weights.ess <= target) & (beta < 1), beta, following)
        return torch.where(weights.dead, 1.0, following)

    def reweight(self, weights: Weights, log_likelihood: Tensor, increment: Tensor) -> Weights:
        """``w <- w p(y | x)^(b' - b)``; a likelihood of zero to the power of 0 is one."""
        return weights.add(torch.where(increment == 0, 0.0, increment * log_likelihood))

    def resample(self, weights: Weights, particles: Trajectory) -> tuple[ResamplingRecord, Weights, Trajectory]:
        """Where the ESS is low: ancestors ``A ~ r(. | W)``, ``x <- x_A``, ``w <-`` mean of w."""
        ess, log_w = weights.ess, weights.log_weights
        chosen = (ess <= self.ess_threshold * self.num_particles * (1 + 1e-9)) & ~weights.dead
        ancestors = torch.arange(self.num_particles, device=ess.device).view(-1, *(1,) * ess.dim()).expand_as(log_w)
        # A dead particle may be anything: as a living one it can be moved by kernels that need a state of positive density.
        living = torch.where(log_w == -torch.inf, log_w.argmax(0, keepdim=True), ancestors)
        if bool(chosen.any()):
            u = torch.rand(self.resampler.num_uniforms(self.num_particles), *ess.shape, dtype=torch.float64, device=ess.device)
            living = torch.where(chosen, self.resampler(weights.to_draw_by, u), living)
            ancestors = torch.where(chosen, living, ancestors)
            weights = weights.set_to_mean(chosen)
        return ResamplingRecord(ess, ancestors, chosen, log_w), weights, particles.reorder(living)

    def move(self, particles: Trajectory, beta: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Trajectory, Tensor]:
        """``x <- K_b(x)`` for all particles in one batch, and the fraction of moves that changed a particle."""
        states, rate = self.chains(particles, self.num_particles, beta, args, kwargs)
        return states[-1], rate

    def chains(
        self, starts: Trajectory, num_chains: int, beta: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Trajectory], Tensor]:
        """``x_{j+1} ~ K_b(x_j)``, ``num_moves`` times from each of the starts, in one batch.

        :returns: the starts and the state after each move, all with the same sites, and the fraction of moves that changed a particle.
        """
        states, rate = [starts], torch.zeros_like(beta)
        if self.num_moves == 0:
            return states, rate
        tempered = TemperMessenger(likelihood=beta)(self.model)
        kernel = replica_kernel(self.kernel, tempered, num_chains, self.max_plate_nesting)
        for _ in range(self.num_moves):
            posterior, moved = kernel.step(states[-1], *args, **kwargs)
            for name in states[-1].keys() - moved.keys():  # the run stopped before the site: every execution had ended
                moved[name] = states[-1][name]
            for name in moved.keys() - states[-1].keys():
                # The executions so far had ended before the site, as the shortest of this run has, among which is the last of them.
                assert posterior.particles.lengths is not None
                ended = take_one(posterior.sites[name], posterior.particles.lengths.argmin(0, keepdim=True))
                for state in states:
                    state[name] = ended
            rate = rate + moved.differs(states[-1]).to(rate).mean(0) / self.num_moves
            states.append(moved)
        return states, rate

    def _check_alive(self, weights: Weights, beta: Tensor) -> None:
        if bool(weights.dead.all()):
            raise SMCFailed(f"likelihood^{float(beta.max()):.3g}", self.num_particles, beta.numel())


def _check_likelihood(log_likelihood: Tensor | None) -> None:
    """
    :raises ValueError: for a log-likelihood that is nan or infinite; only -inf is a likelihood.
    """
    assert log_likelihood is not None
    if bool((torch.isnan(log_likelihood) | (log_likelihood == torch.inf)).any()):
        raise ValueError(
            "a particle's log-likelihood is nan or +inf; run Importance on the model, whose error names the site that gives it"
        )


def _check_ladder(betas: Any, ess_threshold: float) -> tuple[float, ...] | None:
    """
    :returns: the powers above 0, or ``None`` for an adaptive ladder.
    :raises ValueError: for anything but increasing powers up to 1, or an ESS that a bisection cannot aim at.
    """
    if isinstance(betas, str):
        if betas != "adaptive":
            raise ValueError(f"betas must be 'adaptive' or increasing powers that end at 1, got {betas!r}")
        if not 0.0 < ess_threshold < 1.0:
            raise ValueError(
                f"an adaptive ladder aims at an ESS of ess_threshold * N: ess_threshold must lie in (0, 1), got {ess_threshold!r}"
            )
        return None
    if not isinstance(betas, Iterable) or not all(isinstance(beta, int | float) for beta in betas):
        raise ValueError(f"betas must be 'adaptive' or increasing powers that end at 1, got {betas!r}")
    ladder = [float(beta) for beta in betas]
    increasing = all(a < b for a, b in itertools.pairwise([-math.inf, *ladder]))
    if not ladder or not increasing or ladder[0] < 0 or ladder[-1] != 1.0:
        raise ValueError(f"betas must be increasing powers from at least 0 that end at 1, e.g. [0, 0.3, 1], got {list(betas)!r}")
    return tuple(beta for beta in ladder if beta > 0)
