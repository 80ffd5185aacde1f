"""Residual resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import ancestors_from_counts, invert_cdf, particles_first, particles_last, pin, scaled_weights


class Residual:
    """``floor(N W_i)`` certain copies, the rest multinomial on the remainders (Liu & Chen, 1998)."""

    __name__ = "residual"

    def num_uniforms(self, num_particles: int) -> int:
        return num_particles

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        certain, rest = copies_and_rest(log_weights)
        num_certain = certain.sum(-1, keepdim=True)
        drawn = invert_cdf(rest, particles_last(u))
        slots = torch.arange(certain.shape[-1], device=certain.device).expand_as(certain).contiguous()
        fixed = particles_last(ancestors_from_counts(certain))
        return particles_first(torch.where(slots < num_certain, fixed, drawn))

    def num_conditional_uniforms(self, num_particles: int) -> int:
        return num_particles + 1

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The reference continues in one of its certain copies, or in one of the drawn slots, in proportion to its expected copies.

        One of weight zero, as the start of a chain may be, continues in any slot.
        """
        certain, remainders = copies_and_rest(log_weights)
        where = reference[..., None]
        copies = certain.gather(-1, where)[..., 0]
        rest = remainders.gather(-1, where)[..., 0]
        first = certain.cumsum(-1).gather(-1, where)[..., 0] - copies
        num_certain = certain.sum(-1)
        num_drawn = certain.shape[-1] - num_certain
        choice = u[-1] * (copies + rest)
        drawn_slot = num_certain + ((choice - copies) / rest.clamp(min=1e-300) * num_drawn).floor().clamp(min=0).minimum(num_drawn - 1)
        slot = torch.where((choice < copies) | (num_drawn == 0), first + choice.floor().minimum(copies - 1), drawn_slot).clamp(min=0).long()
        return pin(self(log_weights, u[:-1]), slot, reference), slot


def copies_and_rest(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``floor(N W_i)`` and ``N W_i - floor(N W_i)``, both ``[*plates, N]``.

    An expectation that is an integer but for rounding counts as one: 49 equal weights give ``49 * (1 / 49) = 0.999..``, which as a
    remainder would turn every certain copy into a random one.
    """
    expected = scaled_weights(log_weights)
    certain = (expected * (1 + 1e-9)).floor()
    return certain, (expected - certain).clamp(min=0)


residual = Residual()
