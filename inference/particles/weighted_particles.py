"""The particles of a posterior, with every level of ``max_plate_nesting``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .history import ResamplingRecord, Site
from .pytree import select_plate
from .weights import Weights


class WeightedParticles(NamedTuple):
    """What an algorithm knows of its particles; a posterior shows it without the dimensions that are no independent plates.

    ``*plates`` stands for all levels of ``max_plate_nesting``, of size 1 where a level is no independent plate.

    :ivar Weights weights: ``[N, *plates]``.
    :ivar tuple plate_dims: dimensions of the independent plates, ascending, negative.
    :ivar tuple sites: in the order in which they were met.
    :ivar tuple records: what happened at each barrier.
    :ivar value: what the model returned, or the state that the last barrier returned.
    :ivar Tensor lengths: ``[N, *plates]`` steps that each particle took; ``None`` if not known.
    :ivar Tensor log_likelihood: ``[N, *plates]`` of the observed sites, not tempered; ``None`` if not known.
    :ivar Tensor log_bridged: ``[N, *plates]`` of the latent sites on a bridge of powers, at their full power; ``None`` if not known.
    """

    weights: Weights
    plate_dims: tuple[int, ...] = ()
    sites: tuple[Site, ...] = ()
    records: tuple[ResamplingRecord, ...] = ()
    value: Any = None
    lengths: Tensor | None = None
    log_likelihood: Tensor | None = None
    log_bridged: Tensor | None = None

    @property
    def nesting(self) -> int:
        """Levels of ``max_plate_nesting``."""
        return self.weights.log_weights.dim() - 1

    @property
    def public(self) -> tuple[Any, ...]:
        """The index of a tensor ``[..., *plates]`` that leaves out the dimensions that are not independent plates."""
        return (..., *(slice(None) if dim in self.plate_dims else 0 for dim in range(-self.nesting, 0)))

    def of_leftmost(self, k: int) -> WeightedParticles:
        """The populations at index ``k`` of the leftmost plate, without that plate."""

        def particles(tensor: Tensor) -> Tensor:
            return tensor.select(1, k)

        return WeightedParticles(
            Weights(particles(self.weights.log_weights)),
            tuple(dim for dim in self.plate_dims if dim != -self.nesting),
            tuple(site.map(particles) for site in self.sites),
            tuple(record.map(particles, lambda populations: populations.select(0, k)) for record in self.records),
            select_plate(self.value, 1, k),
            lengths=None if self.lengths is None else particles(self.lengths),
            log_likelihood=None if self.log_likelihood is None else particles(self.log_likelihood),
        )

    def lineages(self) -> list[Tensor]:
        """For each number of barriers passed, where the ancestor ``[N, *plates]`` of each particle was."""
        like = self.weights.log_weights
        own = torch.arange(len(like), device=like.device).view(-1, *(1,) * self.nesting).expand_as(like)
        lineages = [own]
        for record in reversed(self.records):
            lineages.append(record.ancestors.gather(0, lineages[-1]) if record.resampled.any() else lineages[-1])
        return lineages[::-1]
