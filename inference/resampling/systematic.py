"""Systematic resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import invert_cdf, particles_first, particles_last, pin, reference_quantile, scaled_weights


class Systematic:
    """A comb of N equidistant points with one common offset (Carpenter, Clifford & Fearnhead, 1999)."""

    __name__ = "systematic"

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        n = log_weights.shape[0]
        comb = (torch.arange(n, dtype=torch.float64, device=u.device) + particles_last(u).to(torch.float64)) / n
        return particles_first(invert_cdf(scaled_weights(log_weights), comb))

    def num_conditional_uniforms(self, num_particles: int) -> int:
        return 1

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A tooth of the comb falls uniformly on the reference's stretch and tells the offset of all (Chopin & Singh, 2015)."""
        slot, offset = reference_quantile(log_weights, reference, u[0])
        return pin(self(log_weights, offset[None]), slot, reference), slot


systematic = Systematic()
