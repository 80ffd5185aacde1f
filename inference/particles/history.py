"""What a sweep remembers of its particles, those that died included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Site(NamedTuple):
    """A site as it was met: ``barriers`` barriers came before it.

    :ivar Tensor value: ``[N, *batch, *event]`` of a latent or deterministic site.
    :ivar Tensor log_prob: ``[N, *batch]``, where it is recorded.
    :ivar Tensor score: ``[N, *batch]``: what the distribution of an observed site says of each particle in its attribute
        ``score``, for display.
    """

    name: str
    value: Tensor | None
    log_prob: Tensor | None
    barriers: int
    score: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Site:
        """``fn`` of every tensor."""
        value, log_prob, score = (None if tensor is None else fn(tensor) for tensor in (self.value, self.log_prob, self.score))
        return Site(self.name, value, log_prob, self.barriers, score)


class ResamplingRecord(NamedTuple):
    """What happened at a barrier. All but the ancestors is from before it; what is ``None`` was not known.

    :ivar Tensor ess: ``[*plates]``.
    :ivar Tensor ancestors: ``[N, *plates]``.
    :ivar Tensor resampled: ``[*plates]`` populations that were resampled.
    :ivar Tensor log_weights: ``[N, *plates]``.
    :ivar Tensor log_likelihood: ``[N, *plates]`` of the observed sites of each particle so far, not tempered.
    :ivar Tensor done: ``[N, *plates]`` particles that had finished.
    :ivar Tensor move_rate: ``[*plates]``, where the particles were moved after the barrier: fraction of the moves that changed one.
    """

    ess: Tensor
    ancestors: Tensor
    resampled: Tensor
    log_weights: Tensor | None = None
    log_likelihood: Tensor | None = None
    done: Tensor | None = None
    move_rate: Tensor | None = None

    def map(self, particles: Callable[[Tensor], Tensor], populations: Callable[[Tensor], Tensor]) -> ResamplingRecord:
        """``particles`` of every tensor with a particle dimension, ``populations`` of the others."""
        weights, likelihood, done = (None if t is None else particles(t) for t in (self.log_weights, self.log_likelihood, self.done))
        rate = None if self.move_rate is None else populations(self.move_rate)
        own = populations(self.ess), particles(self.ancestors), populations(self.resampled)
        return ResamplingRecord(*own, weights, likelihood, done, rate)

    @property
    def bare(self) -> ResamplingRecord:
        """Without what is known of the particles."""
        return ResamplingRecord(self.ess, self.ancestors, self.resampled)


class History(NamedTuple):
    """All particles of a sweep, and where those of its posterior come from.

    :ivar tuple records: a :class:`ResamplingRecord` for each barrier.
    :ivar Tensor barriers: ``[N, *plates]``: barriers before the last segment that each particle of the posterior lived in.
    :ivar Tensor particle: ``[N, *plates]``: its number there.
    """

    sites: tuple[Site, ...]
    records: tuple[ResamplingRecord, ...]
    barriers: Tensor
    particle: Tensor

    @classmethod
    def of(cls, sites: tuple[Site, ...], records: tuple[ResamplingRecord, ...], like: Tensor) -> History:
        """Of particles that were there to the end.

        :param Tensor like: ``[N, *plates]``.
        """
        own = torch.arange(like.shape[0], device=like.device).view(-1, *(1,) * (like.dim() - 1)).expand_as(like)
        last = len(records)
        if records and all(site.barriers < last for site in sites):  # the model ended with a barrier
            return cls(sites, records, torch.full_like(own, last - 1), records[-1].ancestors.expand_as(own))
        return cls(sites, records, torch.full_like(own, last), own)

    def map(self, particles: Callable[[Tensor], Tensor], populations: Callable[[Tensor], Tensor]) -> History:
        """As for :meth:`ResamplingRecord.map`."""
        records = tuple(record.map(particles, populations) for record in self.records)
        return History(tuple(site.map(particles) for site in self.sites), records, particles(self.barriers), particles(self.particle))


def score_of(fn: Any, log_prob: Tensor | None) -> Tensor | None:
    """What a distribution that was evaluated says in its attribute ``score [*batch]``, also under a mask.

    :param Tensor log_prob: ``[N, *batch]`` its log-probability, ``None`` if it was not evaluated.
    """
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    score = getattr(fn, "score", None)
    return score.expand_as(log_prob) if isinstance(score, Tensor) and log_prob is not None else None
