"""Multinomial resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import invert_cdf, particles_first, particles_last, pin, scaled_weights


class Multinomial:
    """N independent draws from the weights (Gordon, Salmond & Smith, 1993). The draws are not sorted, so slots are exchangeable."""

    __name__ = "multinomial"

    def num_uniforms(self, num_particles: int) -> int:
        return num_particles

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return particles_first(invert_cdf(scaled_weights(log_weights), particles_last(u)))

    def num_conditional_uniforms(self, num_particles: int) -> int:
        return num_particles

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The slots are exchangeable, so the reference may as well continue in the first (Andrieu, Doucet & Holenstein, 2010)."""
        slot = torch.zeros_like(reference)
        return pin(self(log_weights, u), slot, reference), slot


multinomial = Multinomial()
