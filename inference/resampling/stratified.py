"""Stratified resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import invert_cdf, particles_first, particles_last, pin, reference_quantile, scaled_weights


class Stratified:
    """One uniform point in each of N strata of equal mass (Kitagawa, 1996)."""

    __name__ = "stratified"

    def num_uniforms(self, num_particles: int) -> int:
        return num_particles

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        n = log_weights.shape[0]
        points = (torch.arange(n, dtype=torch.float64, device=u.device) + particles_last(u).to(torch.float64)) / n
        return particles_first(invert_cdf(scaled_weights(log_weights), points))

    def num_conditional_uniforms(self, num_particles: int) -> int:
        return num_particles + 1

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A point uniform on the reference's stretch tells its stratum; the other strata draw as always."""
        slot, _ = reference_quantile(log_weights, reference, u[-1])
        return pin(self(log_weights, u[:-1]), slot, reference), slot


stratified = Stratified()
