"""What a sample site contributes to the weights, and which site spoiled them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import SMCFailed
from .weights import Weights


def scaled(log_prob: Tensor, scale: Any) -> Tensor:
    """``log_prob * scale``, with 0 for a factor of probability zero to the power of 0."""
    if isinstance(scale, Tensor):
        scale = scale.to(log_prob.device)
        return torch.where(scale == 0, 0.0, log_prob * scale)
    if scale == 1:
        return log_prob
    return log_prob * scale if scale != 0 else torch.zeros_like(log_prob)


def is_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and scale == 1


def is_deterministic(msg: Any) -> bool:
    return bool(msg["infer"].get("_deterministic", False))


def raise_for_dead(factors: list[tuple[str, Weights]]) -> None:
    """
    :param list factors: sites in order, each with the weights after it.
    :raises SMCFailed: if all populations are dead, naming the site that killed the last of them.
    :raises ValueError: for a nan or infinite weight, naming the site.
    """
    for site, weights in factors:
        log_mean = weights.log_mean
        if torch.isnan(log_mean).any():
            raise ValueError(f"site {site!r} gave a nan log-probability; check the parameters of its distribution (e.g. nan log-odds)")
        if (log_mean == torch.inf).any():
            raise ValueError(f"site {site!r} gave an infinite log-weight; a factor must be below +inf")
        if (log_mean == -torch.inf).all():
            raise SMCFailed(site, weights.num_particles, log_mean.numel())
