"""Residual resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .protocol import ancestors_from_counts, invert_cdf, scaled_weights


class Residual:
    """``floor(N W_i)`` certain copies, the rest multinomial on the remainders (Liu & Chen, 1998)."""

    __name__ = "residual"

    def num_uniforms(self, num_particles: int) -> int:
        return num_particles

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        expected = scaled_weights(log_weights)
        certain = expected.floor()
        num_certain = certain.sum(-1, keepdim=True)
        drawn = invert_cdf(expected - certain, u.movedim(0, -1))
        slots = torch.arange(expected.shape[-1], device=expected.device).expand_as(expected).contiguous()
        fixed = ancestors_from_counts(certain).movedim(0, -1)
        return torch.where(slots < num_certain, fixed, drawn).movedim(-1, 0)


residual = Residual()
