"""What a resampling scheme is, and the pieces that schemes share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Resampler(Protocol):
    """A resampling scheme as a pure function of weights and uniforms.

    Unbiased: the expected number of copies of particle i is ``N W_i``.
    """

    @property
    def __name__(self) -> str: ...

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        """
        :param Tensor log_weights: ``[N, *plates]``, unnormalised; each plate index is resampled on its own.
        :param Tensor u: ``[num_uniforms(N), *plates]`` in [0, 1).
        :returns: ancestors ``[N, *plates]``; never a particle of zero weight.
        """
        ...

    def num_uniforms(self, num_particles: int) -> int:
        """How many uniforms one population needs."""
        ...


class ConditionalResampler(Resampler, Protocol):
    """A scheme that can also resample given that a reference survives, for conditional SMC.

    Not resampling with one slot overwritten, which is biased: the distribution of ancestors A and slot k is the scheme's own tilted to
    ``A_k = reference``, i.e. ``r(A | W) 1[A_k = b] / (N W_b)``.
    """

    def num_conditional_uniforms(self, num_particles: int) -> int:
        """How many uniforms :meth:`conditional` needs for one population."""
        ...

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param Tensor log_weights: ``[N, *plates]``, unnormalised.
        :param Tensor reference: ``[*plates]``, the particle that must survive; its weight is positive.
        :param Tensor u: ``[num_conditional_uniforms(N), *plates]`` in [0, 1).
        :returns: ancestors ``[N, *plates]``, and the slot ``[*plates]`` in which the reference continues.
        """
        ...


def is_scheme(resampler: object) -> bool:
    """Whether it can be used as a :class:`Resampler`."""
    return callable(resampler) and callable(getattr(resampler, "num_uniforms", None))


def pin(ancestors: Tensor, slot: Tensor, reference: Tensor) -> Tensor:
    """Ancestors with ``reference`` in ``slot``, where it is already but for rounding (or where the slot's own draw is not used)."""
    return ancestors.scatter(0, slot[None], reference[None])


def reference_quantile(log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``N v`` for v uniform on the reference's stretch of the cumulative weights: its slot ``floor(N v)`` and the offset within it."""
    expected = scaled_weights(log_weights)
    top = expected.cumsum(-1).gather(-1, reference[..., None])[..., 0]
    mass = expected.gather(-1, reference[..., None])[..., 0]
    scaled = (top - mass + u * mass).clamp(0, log_weights.shape[0] * (1 - 2.0**-52))
    slot = scaled.floor()
    return slot.long(), scaled - slot


def particles_last(tensor: Tensor) -> Tensor:
    """``[N, *plates]`` as ``[*plates, N]``."""
    return tensor if tensor.dim() == 1 else tensor.movedim(0, -1)  # idle movedims take 2 to 3 % of a sweep with 64 particles


def particles_first(tensor: Tensor) -> Tensor:
    """``[*plates, N]`` as ``[N, *plates]``."""
    return tensor if tensor.dim() == 1 else tensor.movedim(-1, 0)


def scaled_weights(log_weights: Tensor) -> Tensor:
    """``N W_i`` in float64 with particles last: ``[*plates, N]``."""
    return particles_last(log_weights.to(torch.float64).softmax(0)).contiguous() * log_weights.shape[0]


def invert_cdf(mass: Tensor, quantiles: Tensor) -> Tensor:
    """Index of the particle whose stretch of the cumulative mass holds each quantile in [0, 1).

    Safe against rounding: the index is never out of range and never that of a particle without mass.

    :param Tensor mass: ``[*plates, N]``, unnormalised.
    :param Tensor quantiles: ``[*plates, K]``.
    """
    cdf = mass.cumsum(-1)
    total = cdf[..., -1:].contiguous()
    index = torch.searchsorted(cdf, quantiles.to(cdf.dtype).contiguous() * total, right=True)
    last = torch.searchsorted(cdf, total)
    return torch.minimum(index, last)


def ancestors_from_counts(counts: Tensor) -> Tensor:
    """Ancestors ``[N, *plates]`` in order from offspring counts ``[*plates, N]`` that sum to N."""
    slots = torch.arange(counts.shape[-1], device=counts.device).expand_as(counts).contiguous()
    return particles_first(torch.searchsorted(counts.cumsum(-1), slots, right=True))
