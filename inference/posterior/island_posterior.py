"""Independent particle filters pooled by their evidence."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .chain_posterior import PooledPosterior
from .particle_posterior import ParticlePosterior


class IslandPosterior(PooledPosterior):
    """The particles of K independent filters as one population of K N; island k has particles ``k N .. (k + 1) N - 1``.

    Islands are weighted by their evidence estimates: a particle keeps its weight, and the evidence is the mean of the islands', which is
    unbiased as they are.

    :param ParticlePosterior joint: of the replicated model, whose leftmost plate is the islands.
    :ivar list islands: the :class:`ParticlePosterior` of each, with its ESS, genealogy and evidence.
    """

    part_name: ClassVar[str] = "island"
    parts_at: ClassVar[str] = "islands"
    unbiased: ClassVar[bool] = True

    def __init__(self, joint: ParticlePosterior) -> None:
        num_islands = joint.particles.weights.log_weights.shape[1]
        self.islands = [ParticlePosterior(joint.particles.of_leftmost(k)) for k in range(num_islands)]
        super().__init__(self.islands, [island.particles.weights.log_weights for island in self.islands], joint.cost)
        self.complete, self.checkpoint, self.audit = joint.complete, joint.checkpoint, joint.audit

    @property
    def num_barriers(self) -> int:
        return self.islands[0].num_barriers

    @property
    def island_log_evidence(self) -> Tensor:
        """``[K, *P]``: log of each island's unbiased estimate of the evidence."""
        return torch.stack([island.log_evidence for island in self.islands])

    def diagnostics(self) -> dict[str, Any]:
        """As for every posterior, with the least ``ess`` of the islands at each barrier; and ``islands``, a list of the
        ``log_evidence`` and the ``ess`` of each."""
        each = [{"log_evidence": island.log_evidence.tolist(), "ess": island.ess.tolist()} for island in self.islands]
        return {**super().diagnostics(), "islands": each}

    def _by_unit(self) -> dict[str, list[Any]]:
        least = torch.stack([island.ess for island in self.islands]).amin(0)
        resampled = torch.stack([island.resampled for island in self.islands]).any(0)
        return {"ess": least.tolist(), "resampled": [bool(each.any()) for each in resampled]}

    def __repr__(self) -> str:
        return f"IslandPosterior({len(self.islands)} islands of {self.islands[0].num_particles}, {super().__repr__()})"
