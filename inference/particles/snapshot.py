"""A particle system as it stood at a barrier, or at the end of the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .history import ResamplingRecord, Site
from .plates import Frame
from .weights import Weights


class Snapshot(NamedTuple):
    """Taking one costs nothing: tensors are never changed in place, and of lists that grow only the length is kept.

    :ivar Tensor log_likelihood: ``[N, *plates]``.
    :ivar Tensor uneven_lengths: ``[N, *plates]`` segments that each particle took part in; ``None`` where all particles took part in all.
    :ivar int segment: index of the last segment that was begun.
    :ivar int counted: index of the last segment that counts in :attr:`lengths`.
    :ivar Tensor log_bridged: ``[N, *plates]`` of sites on a bridge of powers, at their full power.
    :ivar float share: of it that the weights have.
    :ivar value: the state that the barrier returned, or what the model returned.
    """

    weights: Weights
    log_likelihood: Tensor
    uneven_lengths: Tensor | None
    plates: frozenset[Frame]
    all_sites: list[Site]
    num_sites: int
    all_records: list[ResamplingRecord]
    num_records: int
    segment: int
    counted: int
    value: Any
    log_bridged: Tensor
    share: float

    @property
    def lengths(self) -> Tensor:
        return lengths_of(self.uneven_lengths, self.counted, self.log_likelihood)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.all_sites[: self.num_sites])

    @property
    def records(self) -> tuple[ResamplingRecord, ...]:
        return tuple(self.all_records[: self.num_records])


def lengths_of(uneven: Tensor | None, counted: int, like: Tensor) -> Tensor:
    """``[N, *plates]``: segments that each particle took part in, as a snapshot knows them."""
    return torch.full_like(like, counted + 1, dtype=torch.long) if uneven is None else uneven
