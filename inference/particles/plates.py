"""Which plates of a model hold their own populations, and what each of them gets of a site."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

PLATE = "_particles"


class Frame(NamedTuple):
    """A plate of the model at a batch dimension."""

    name: str
    dim: int


def plates_of(msg: Any, max_plate_nesting: int) -> frozenset[Frame]:
    """The model's plates around a site.

    :raises ValueError: if one lies to the left of the particles.
    """
    stack = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
    ours = [frame.dim for frame in stack if frame.name == PLATE]
    outer = [frame.name for frame in stack if ours and frame.dim < ours[0]]
    if outer:
        raise ValueError(
            f"site {msg['name']!r} lies in plate {outer[0]!r} to the left of the particle plate; pass max_plate_nesting="
            f"{max_plate_nesting + len(outer)} (the number of nested plates of the model)"
        )
    return frozenset(Frame(frame.name, frame.dim) for frame in stack if frame.name != PLATE)


def subsampled_plates(msg: Any) -> set[Frame]:
    """The plates around a site of which only a subsample is there."""
    return {
        Frame(frame.name, frame.dim) for frame in msg["cond_indep_stack"] if frame.vectorized and frame.full_size not in (None, frame.size)
    }


def dependent_dims(plates: frozenset[Frame], max_plate_nesting: int) -> list[int]:
    """Batch dimensions that are not independent plates."""
    independent = {frame.dim for frame in plates}
    return [dim for dim in range(-max_plate_nesting, 0) if dim not in independent]


def per_population(log_prob: Tensor, name: str, num_particles: int, max_plate_nesting: int, dependent: list[int]) -> Tensor:
    """A site's log-probability as ``[N, *plates]`` in float64: summed over every batch dimension that is not an independent plate.

    :raises ValueError: if it lacks the particle dimension.
    """
    ndim = 1 + max_plate_nesting
    if log_prob.dim() != ndim or log_prob.shape[0] != num_particles:
        raise ValueError(
            f"site {name!r} has a log_prob of shape {tuple(log_prob.shape)}, which lacks the particle dimension: expected "
            f"{num_particles} at dim {-ndim}. Its distribution must have batch shape [particles, plates] after expand(); a plate "
            f"left of it needs a larger max_plate_nesting (now {max_plate_nesting})."
        )
    log_prob = log_prob.to(torch.float64)
    return log_prob.sum(dependent, keepdim=True) if dependent else log_prob
