"""z-scores of estimates over independent replicas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

RARE = 0.02
"""Probabilities nearer to 0 or 1 are not tested by normal approximations (but those of 0 and 1 are, exactly)."""

FLAT = 1e-9
"""Standard deviations below are those of a constant."""


def mean_scores(name: str, values: Tensor, centre: Tensor, exact: Tensor, bias: float) -> dict[str, float]:
    """z-scores of ``values [R, *plates]`` around ``centre``, for the probabilities that are neither 0, 1 nor rare."""
    values, exact = torch.broadcast_tensors(values, exact)
    differences = values - centre
    tested = (exact > RARE) & (exact < 1 - RARE)
    certain = (exact < FLAT) | (exact > 1 - FLAT)
    scores: dict[str, float] = {}
    if bool(tested.any()):
        scores |= z_scores(name, torch.where(tested, differences, 0.0), torch.zeros_like(differences[:1]), bias)
    if bool(certain.any()):
        off = torch.where(certain, differences, 0.0).abs().max()
        scores[f"{name}, certain"] = 0.0 if float(off) < 1e-4 else math.inf
    return scores


def z_scores(name: str, values: Tensor, exact: Tensor, bias: float) -> dict[str, float]:
    """Of the means over the replicas ``[R, ...]``; a quantity that never varies must be exact."""
    error, deviation = values.mean(0) - exact[0], values.std(0) / math.sqrt(len(values))
    size = (error.abs() - bias).clamp(min=0.0) * error.sign()
    z = torch.where(deviation > FLAT, size / deviation.clamp(min=1e-300), torch.where(size.abs() < 1e-4, 0.0, math.inf)).flatten()
    return {f"{name} [{k}]": score for k, score in enumerate(z.tolist())}


def worst(scores: Mapping[str, float]) -> float:
    return max((math.inf if math.isnan(z) else abs(z) for z in scores.values()), default=0.0)
