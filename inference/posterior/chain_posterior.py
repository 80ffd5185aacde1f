"""Posteriors that pool the particles of several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..particles.history import Site
from ..particles.pytree import concatenate
from ..particles.weighted_particles import WeightedParticles
from ..particles.weights import Weights
from .particle_posterior import ParticlePosterior


class PooledPosterior(ParticlePosterior):
    """The particles of several posteriors of the same model as one population.

    :param list parts: posteriors with the same plates.
    :param list log_weights: ``[N_i, *plates]`` for each part, on a common scale.
    :ivar list parts: the posteriors. :attr:`sites` has the sites that all of them have.
    :cvar str part_name: what a part is.
    :cvar str parts_at: the attribute to take parts from.
    :cvar bool unbiased: whether the mean weight of a part estimates the evidence.
    """

    part_name: ClassVar[str] = "filter"
    unbiased: ClassVar[bool] = False

    def __init__(self, parts: list[ParticlePosterior], log_weights: list[Tensor], cost: dict[str, float]) -> None:
        self.parts = parts
        super().__init__(pooled_particles(parts, log_weights))
        self.cost = cost
        self.complete = all(part.complete for part in parts)

    @property
    def log_evidence(self) -> Tensor:
        """``[*P]``: log of the mean weight of all particles, where the mean weight of each part estimates the evidence.

        :raises ValueError: if a part gives no evidence, or its mean weight is no estimate of it.
        """
        for part in self.parts:
            _ = part.log_evidence
        if not self.unbiased:
            raise ValueError(
                f"a pool of {self.part_name}s gives no evidence: their particles were pooled with weights of their own. "
                f"Each of {self.parts_at} has its log_evidence"
            )
        return super().log_evidence


def pooled_particles(parts: Sequence[ParticlePosterior], log_weights: Sequence[Tensor]) -> WeightedParticles:
    """The particles of all parts with new weights, and the sites that all parts have; genealogies stay with the parts."""
    first = parts[0]

    def everywhere(name: str) -> bool:
        return all(name in part.sites and part.sites[name].shape[1:] == first.sites[name].shape[1:] for part in parts)

    sites = tuple(Site(name, torch.cat([part.sites[name] for part in parts]), None, 0) for name in filter(everywhere, first.sites))
    return WeightedParticles(
        Weights(torch.cat(list(log_weights))),
        first.particles.plate_dims,
        sites,
        value=concatenate([part.value for part in parts]),
        lengths=_joined([part.particles.lengths for part in parts]),
        log_likelihood=_joined([part.particles.log_likelihood for part in parts]),
    )


def _joined(tensors: list[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


CHAIN = "a Markov chain over trajectories gives no evidence; run SMC, TemperedSMC or Importance on the model"


class ChainPosterior(PooledPosterior):
    """All particles of all iterations of a particle chain; every iteration has the same total weight.

    There is no evidence estimate, neither of the chain nor of an iteration: that of a conditional or an accepted filter is not unbiased.

    :ivar list iterations: the :class:`ParticlePosterior` of each iteration; the same one again where the state did not change.
    :ivar Tensor acceptance_rate: ``[*P]`` mean acceptance probability of the iterations; ``None`` for a kernel that accepts always.
    :ivar float step_size_scale: what the adaptation multiplied the step size by; ``None`` for a kernel that adapts none.
    """

    unit: ClassVar[str] = "iteration"
    part_name: ClassVar[str] = "iteration"
    parts_at: ClassVar[str] = "iterations"

    def __init__(
        self,
        iterations: list[ParticlePosterior],
        cost: dict[str, float],
        *,
        acceptance_rate: Tensor | None = None,
        step_size_scale: float | None = None,
    ) -> None:
        self.iterations = iterations
        # Where nothing was accepted an iteration gives the same particles again; they are kept once.
        times = Counter(map(id, iterations))
        distinct = list({id(i): i for i in iterations}.values())
        scale = math.log(sum(i.num_particles for i in distinct) / len(iterations))
        super().__init__(distinct, [i.particles.weights.normalized.log() + math.log(times[id(i)]) + scale for i in distinct], cost)
        self.acceptance_rate = None if acceptance_rate is None else acceptance_rate[self.particles.public]
        self.step_size_scale = step_size_scale

    @property
    def part_numbers(self) -> list[int]:
        """The iteration in which each part came first."""
        first: dict[int, int] = {}
        for number, iteration in enumerate(self.iterations):
            first.setdefault(id(iteration), number)
        return [first[id(part)] for part in self.parts]

    def diagnostics(self) -> dict[str, Any]:
        """As for every posterior, and ``iterations``, ``distinct_iterations`` (others kept the state before), ``acceptance_rate`` where the
        kernel may reject, and ``step_size_scale`` where it adapts one."""
        found = {**super().diagnostics(), "iterations": len(self.iterations), "distinct_iterations": len(self.parts)}
        if self.acceptance_rate is not None:
            found["acceptance_rate"] = self.acceptance_rate.tolist()
        if self.step_size_scale is not None:
            found["step_size_scale"] = self.step_size_scale
        return found

    def _by_unit(self) -> dict[str, list[Any]]:
        particles = [iteration.particles for iteration in self.iterations]
        ess = [each.weights.ess[each.public].tolist() for each in particles]
        return {"ess": ess, "resampled": [any(bool(record.resampled.any()) for record in each.records) for each in particles]}

    @property
    def log_evidence(self) -> Tensor:
        raise ValueError(CHAIN)

    def __repr__(self) -> str:
        return f"ChainPosterior({len(self.iterations)} iterations, {self.num_particles} particles in all)"
