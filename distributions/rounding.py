"""By how much two evaluations of a network may differ."""

from __future__ import annotations

from typing import Any

import torch

TOLERATED = 16.0
"""Units in the last place. A logit of 20 is rounded by 20 of them in the worst case, and sums over layers and batches add to that."""


def rounding_unit(backend: Any, lm: Any = None, depth: int = 3) -> float:
    """The spacing of numbers near 1 in the coarsest number format among a language or reward model's networks; of a float32 without any.

    :param backend: with a network as ``model``, or made of others that have one, such as a calibrated or combined reward.
    :param lm: the language model whose own figures are the scores of a reward with ``of_language_model``.
    """
    network = lm if getattr(backend, "of_language_model", False) else backend
    dtype = getattr(getattr(network, "model", None), "dtype", None)
    unit = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.finfo(torch.float32).eps
    if depth == 0:
        return unit
    values = getattr(backend, "__dict__", {}).values()
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return max([unit, *(rounding_unit(part, lm, depth - 1) for part in parts if hasattr(part, "step_log_odds"))])
