"""What a chain of particle filters returns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .particle_posterior import ParticlePosterior, Site
from .weights import Weights


class _Pooled:
    """Return values of several sweeps as one value whose lanes are all of theirs."""

    def __init__(self, posteriors: list[ParticlePosterior]) -> None:
        self.posteriors = posteriors
        self.num_particles = posteriors[0].num_particles

    def lane(self, index: tuple[int, ...]) -> Any:
        sweep, particle = divmod(index[0], self.num_particles)
        return self.posteriors[sweep].lane((particle, *index[1:]))


class ChainPosterior(ParticlePosterior):
    """All particles of all iterations of a particle chain; every iteration has the same total weight.

    There is no evidence estimate: a conditional filter's is not unbiased.

    :ivar list iterations: the :class:`ParticlePosterior` of each iteration. :attr:`sites` has those that every iteration met.
    """

    def __init__(self, iterations: list[ParticlePosterior], cost: dict[str, float]) -> None:
        self.iterations = iterations
        first = iterations[0]
        log_w = torch.cat([i._weights.normalized.log() for i in iterations])

        def everywhere(name: str) -> bool:
            return all(name in i.sites and i.sites[name].shape == first.sites[name].shape for i in iterations)

        names = filter(everywhere, first.sites)
        sites = tuple(Site(name, torch.cat([i.sites[name] for i in iterations]), None, 0) for name in names)
        super().__init__(Weights(log_w + math.log(first.num_particles)), first._plate_dims, sites, (), _Pooled(iterations))
        self.cost = cost

    def lane(self, index: tuple[int, ...]) -> Any:
        return self.value.lane(index)

    @property
    def log_evidence(self) -> Tensor:
        raise ValueError("a particle Gibbs chain gives no evidence; run SMC or Importance on the model")

    def __repr__(self) -> str:
        return f"ChainPosterior({len(self.iterations)} iterations of {self.iterations[0].num_particles} particles)"
