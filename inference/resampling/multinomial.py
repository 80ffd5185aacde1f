"""Multinomial resampling."""

from __future__ import annotations

from torch import Tensor

from .protocol import invert_cdf, scaled_weights


class Multinomial:
    """N independent draws from the weights (Gordon, Salmond & Smith, 1993). The draws are not sorted, so slots are exchangeable."""

    __name__ = "multinomial"

    def num_uniforms(self, num_particles: int) -> int:
        return num_particles

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return invert_cdf(scaled_weights(log_weights), u.movedim(0, -1)).movedim(-1, 0)


multinomial = Multinomial()
