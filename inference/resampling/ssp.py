"""SSP resampling (Srinivasan sampling process)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import ancestors_from_counts, particles_last, scaled_weights


class SSP:
    """Offspring counts in {floor, ceil} of ``N W_i`` by pairwise rounding (Srinivasan, 2001; Gerber, Chopin & Whiteley, 2019).

    Two fractional parts (a, b) trade mass until one of them is an integer, with probabilities that keep both expectations; the other
    joins the next pair. The pairs form a binary tree, so that a population takes ``log2 N`` passes on the device.
    """

    __name__ = "ssp"

    def num_uniforms(self, num_particles: int) -> int:
        return max(1, _tree_size(num_particles) - 1)

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        expected = scaled_weights(log_weights)
        counts = expected.floor()
        leaves = _tree_size(expected.shape[-1])
        rest = torch.nn.functional.pad(expected - counts, (0, leaves - expected.shape[-1]))
        owner = torch.arange(leaves, device=rest.device).expand(rest.shape)
        raised = torch.zeros_like(rest)
        u = particles_last(u).to(torch.float64)
        used = 0
        while rest.shape[-1] > 1:
            a, b = rest[..., 0::2], rest[..., 1::2]
            owner_a, owner_b = owner[..., 0::2], owner[..., 1::2]
            to_a, to_b = torch.minimum(1 - a, b), torch.minimum(a, 1 - b)
            gains = u[..., used : used + a.shape[-1]] * (to_a + to_b) < to_b  # a gains with probability to_b / (to_a + to_b)
            used += a.shape[-1]
            one_full = a + b >= 1  # then one part becomes 1, else one becomes 0
            settled = torch.where(gains, owner_a, owner_b)
            raised = raised.scatter_add(-1, settled, one_full.to(raised.dtype))
            rest = torch.where(one_full, a + b - 1, a + b)
            owner = torch.where(gains ^ one_full, owner_a, owner_b)
        # The last part is 0 or 1 up to rounding.
        raised = raised.scatter_add(-1, owner, rest.round())
        return ancestors_from_counts(counts + raised[..., : expected.shape[-1]])


def _tree_size(num_particles: int) -> int:
    return 1 << (num_particles - 1).bit_length()


ssp = SSP()
