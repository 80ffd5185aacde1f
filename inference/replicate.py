"""Several independent runs of a model in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro


def replicate(model: Callable[..., Any], num_replicas: int, max_plate_nesting: int) -> Callable[..., Any]:
    """The model in one more plate, to the left of its own: ``num_replicas`` independent populations.

    Run it with ``max_plate_nesting + 1``; weights are then ``[N, num_replicas, *plates]``.
    """

    def replicated(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(f"_replicas_{max_plate_nesting}", num_replicas, dim=-1 - max_plate_nesting):
            return model(*args, **kwargs)

    return replicated
