"""Particle marginal Metropolis-Hastings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..handlers.proposal_messenger import Proposals
from ..particles.trajectory import ChainRecord
from ..posterior.chain_posterior import ChainPosterior
from ..posterior.particle_posterior import ParticlePosterior
from ..resampling import Resampler
from ..util.checked import checked
from .particle_mh import FilterState, ParticleMH


class PMMH(ParticleMH):
    """Particle marginal Metropolis-Hastings: a random walk over a model's continuous parameters, a filter for everything else.

    The parameters theta move in unconstrained space, ``u' = u + step_size * noise`` with ``theta = T(u)``. The rest of the model is
    integrated out by a particle filter given theta', whose evidence estimate takes the place of the likelihood::

        log A = log p(theta') - log p(theta) + log Z(theta') - log Z(theta) + log |dT(u')| - log |dT(u)|

    Since the estimate is unbiased, the chain has the exact posterior of parameters and trajectories, whatever N. The walk moves all
    parameters at once. The result keeps all particles of the filter that each iteration ends with.

    Example, a calibration temperature of a reward model::

        def model(problems):
            temperature = pyro.sample("temperature", dist.Gamma(4.0, 4.0))
            ...
            pyro.sample(f"accept_{t}", dist.Bernoulli(logits=log_odds / temperature), obs=labels)

        posterior = PMMH(model, 32, parameters=["temperature"], step_size=0.5).run(500, problems, warmup_steps=100)
        posterior.sites["temperature"], posterior.weights

    :param model: as for :class:`SMC`. A parameter shared by a plate makes its elements one population.
    :param int num_particles: N.
    :param parameters: names of continuous latent sites before the first barrier.
    :param step_size: standard deviation of the walk in unconstrained space, for all parameters or by name.
    :param bool adapt_step_size: scale the step size during warm-up until proposals are accepted with ``target_accept_prob`` (Robbins-Monro
        steps); it stays fixed afterwards.
    :param float target_accept_prob: mean acceptance probability to aim at.
    :param resampler: as for :class:`SMC`.
    :param float ess_threshold: as for :class:`SMC`.
    :param proposals: per-site proposals of the other sites.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    :raises ValueError: for arguments out of range; when run, for a name that is no continuous latent site before the first barrier.

    References

    [1] *Particle Markov chain Monte Carlo methods*, Christophe Andrieu, Arnaud Doucet, Roman Holenstein (2010), section 4.4.
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        parameters: Sequence[str],
        *,
        step_size: float | Mapping[str, float] = 0.5,
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.3,
        resampler: str | Resampler = "systematic",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        names = (parameters,) if isinstance(parameters, str) else tuple(parameters)
        if not names:
            raise ValueError("parameters must name at least one continuous latent site; without any, use PIMH")
        super().__init__(
            model,
            num_particles,
            parameters=names,
            resampler=resampler,
            ess_threshold=ess_threshold,
            proposals=proposals,
            max_plate_nesting=max_plate_nesting,
        )
        self.step_size = _check_step_sizes(step_size, names)
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(f"target_accept_prob must lie in (0, 1), got {target_accept_prob!r}")
        self.adapt_step_size = adapt_step_size
        self.target_accept_prob = target_accept_prob

    def propose(self, present: FilterState, chain: ChainRecord) -> Mapping[str, Tensor]:
        scale = chain.step_size_scale
        return {name: u + scale * self.step_size[name] * torch.randn_like(u) for name, u in present.unconstrained.items()}

    def adapted(self, chain: ChainRecord, acceptance: Tensor) -> ChainRecord:
        if not self.adapt_step_size or chain.num_steps > chain.warmup_steps:
            return chain
        excess = float(acceptance.mean()) - self.target_accept_prob
        return replace(chain, step_size_scale=chain.step_size_scale * math.exp(excess * chain.num_steps**-0.6))

    def pooled(self, kept: list[ParticlePosterior], chain: ChainRecord, cost: dict[str, float]) -> ChainPosterior:
        return ChainPosterior(kept, cost, acceptance_rate=chain.acceptance_rate, step_size_scale=chain.step_size_scale)

    def logging(self) -> dict[str, str]:
        return {"step size": f"x{self._chain.step_size_scale:.3g}", **super().logging()}

    def diagnostics(self) -> dict[str, Any]:
        return {"step size scale": self._chain.step_size_scale, **super().diagnostics()}


def _check_step_sizes(step_size: float | Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """
    :raises ValueError: for a name without a step size, or one that is not positive.
    """
    sizes = dict(step_size) if isinstance(step_size, Mapping) else dict.fromkeys(names, step_size)
    for name in names:
        if name not in sizes:
            raise ValueError(f"step_size has no entry for parameter {name!r}; it has {list(sizes)}")
    for name, size in sizes.items():
        if name not in names:
            raise ValueError(f"step_size has an entry for {name!r}, which is none of the parameters {list(names)}")
        if not (isinstance(size, int | float) and 0.0 < size < math.inf):
            raise ValueError(f"step_size must be a positive number, got {size!r} for {name!r}")
    return {name: float(size) for name, size in sizes.items()}
