"""Independent particle filters pooled by their evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..particles.pytree import select_plate
from ..particles.weights import Weights
from .chain_posterior import PooledPosterior
from .particle_posterior import ParticlePosterior


class IslandPosterior(PooledPosterior):
    """The particles of K independent filters as one population of K N; island k has lanes ``k N .. (k + 1) N - 1``.

    An island counts as much as its estimate of the evidence, hence a particle's weight is what it was in its island, and the evidence is
    the mean of the islands', which is unbiased as they are.

    :param ParticlePosterior joint: of the replicated model, whose leftmost plate is the islands.
    :ivar list islands: the :class:`ParticlePosterior` of each, with its ESS, genealogy and evidence.
    """

    part_name = "island"
    parts_at = "islands"
    unbiased = True

    def __init__(self, joint: ParticlePosterior) -> None:
        num_islands = joint._weights.log_weights.shape[1]
        self.islands = [_island(joint, k) for k in range(num_islands)]
        super().__init__(self.islands, [island._weights.log_weights for island in self.islands], joint.cost)
        self.complete, self.checkpoint, self.audit = joint.complete, joint.checkpoint, joint.audit

    @property
    def step(self) -> int:
        return self.islands[0].step

    @property
    def island_log_evidence(self) -> Tensor:
        """``[K, *P]``: log of each island's unbiased estimate of the evidence."""
        return torch.stack([island.log_evidence for island in self.islands])

    def __repr__(self) -> str:
        return f"IslandPosterior({len(self.islands)} islands of {self.islands[0].num_particles}, {super().__repr__()})"


def _island(joint: ParticlePosterior, k: int) -> ParticlePosterior:
    def lanes(tensor: Tensor) -> Tensor:
        return tensor.select(1, k)

    def population(tensor: Tensor) -> Tensor:
        return tensor.select(0, k)

    leftmost = 1 - joint._weights.log_weights.dim()
    return ParticlePosterior(
        Weights(joint._weights.log_weights.select(1, k)),
        tuple(dim for dim in joint._plate_dims if dim != leftmost),
        tuple(site.map(lanes) for site in joint._sites),
        tuple(step.map(lanes, population) for step in joint._steps),
        select_plate(joint.value, 1, k),
        lengths=None if joint._lengths is None else lanes(joint._lengths),
        log_likelihood=None if joint._log_likelihood is None else lanes(joint._log_likelihood),
    )
