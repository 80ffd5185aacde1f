"""Draws that are known beforehand."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class Numbered(dist.Categorical):  # type: ignore[misc]
    """Draws 0, 1, .. along the particles, rolled along a plate."""

    def __init__(self, n: int, batch_shape: torch.Size = torch.Size()) -> None:
        super().__init__(torch.ones(*batch_shape, n))
        self.n = n

    def expand(self, batch_shape: Any, _instance: Any = None) -> Numbered:
        return Numbered(self.n, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        turn = torch.arange(shape[0]).view(-1, *(1,) * (len(shape) - 1))
        return ((turn + (torch.arange(shape[1]) if len(shape) > 1 else 0)) % self.n).expand(shape)
