"""Draws of a categorical site."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


def is_categorical(fn: Any) -> bool:
    """Whether :func:`draw_categorical` draws from it: Pyro's own distribution, not one derived from it.

    On a CPU: elsewhere the check of its probabilities would wait for the device.
    """
    return type(fn) is dist.Categorical and fn.probs.device.type == "cpu"


def draw_categorical(fn: Any) -> Tensor:
    """Values ``[*batch]``, with one uniform for each.

    ``fn.sample()`` draws the same distribution with an exponential for each category (:func:`torch.multinomial`).

    :param fn: see :func:`is_categorical`.
    :raises RuntimeError: for probabilities below 0 or nan, as ``fn.sample()`` says it.
    """
    probs: Tensor = fn.probs
    if not float(probs.amin()) >= 0:  # nan as well
        value: Tensor = fn.sample()
        return value
    return categories_at(probs, torch.rand(probs.shape[:-1], dtype=torch.float64, device=probs.device))


def categories_at(probs: Tensor, u: Tensor) -> Tensor:
    """The category ``[*batch]`` whose stretch of the cumulative probabilities, in float64, holds each uniform; never one of probability 0.

    :param Tensor probs: ``[*batch, K]``, at least 0; they need not sum to 1.
    :param Tensor u: ``[*batch]`` in float64, at least 0 and at most 1 - 2^-53, so that its product with a sum is below the sum.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, u.unsqueeze(-1) * cdf[..., -1:], right=True).squeeze(-1)
