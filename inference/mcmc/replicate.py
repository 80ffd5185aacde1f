"""Several independent runs of a model in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro

from ..util.checked import checked
from ..util.validation import check_count
from .trajectory_kernel import TrajectoryKernel

Kernel = Callable[..., TrajectoryKernel]
"""Makes a kernel: ``kernel(model, max_plate_nesting=...)``, e.g. a class, or ``partial(ParticleGibbs, num_particles=4)``."""


@checked
def replicate(model: Callable[..., Any], num_replicas: int, max_plate_nesting: int) -> Callable[..., Any]:
    """The model inside one more plate, to the left of its own, with ``num_replicas`` independent populations.

    Run it with ``max_plate_nesting + 1``; weights are then ``[N, num_replicas, *plates]``.
    """

    check_count("num_replicas", num_replicas)
    check_count("max_plate_nesting", max_plate_nesting, 0)

    def replicated(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(f"_replicas_{max_plate_nesting}", num_replicas, dim=-1 - max_plate_nesting):
            return model(*args, **kwargs)

    return replicated


def replica_kernel(kernel: Kernel, model: Callable[..., Any], num_replicas: int, max_plate_nesting: int) -> TrajectoryKernel:
    """A kernel that moves ``num_replicas`` populations at once.

    :raises ValueError: if ``kernel`` makes no such kernel.
    """
    if not callable(kernel):
        raise ValueError(f"kernel must be the class of a kernel, such as SuffixMH, or a function that makes one, got {kernel!r}")
    try:
        made = kernel(replicate(model, num_replicas, max_plate_nesting), max_plate_nesting=max_plate_nesting + 1)
    except TypeError as error:
        raise ValueError(
            f"kernel is called as kernel(model, max_plate_nesting=...), which failed: {error}. Give it its other arguments beforehand, "
            "e.g. kernel=functools.partial(ParticleGibbs, num_particles=4)"
        ) from error
    if not isinstance(made, TrajectoryKernel):
        raise ValueError(f"kernel must make a kernel over trajectories such as SuffixMH or ParticleGibbs, it made {made!r}")
    if made.extended_state:
        raise ValueError(
            f"{type(made).__name__} cannot move the particles of another algorithm: its state is more than a trajectory, and what is more "
            "would be lost between moves. Use SuffixMH or ParticleGibbs"
        )
    return made
