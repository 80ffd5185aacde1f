"""Best-of-N with a temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.candidate_messenger import CandidateMessenger
from ..handlers.filter_options import FilterOptions
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from .base import Search


class SoftBestOfN(Search):
    """N independent executions with the weights ``softmax(beta r_n)`` of their rewards r, the product of the model's factors.

    A draw by these weights is soft best-of-N as published [1]; ``posterior.answers()`` is its distribution over answers, and the most
    probable one a vote in which each candidate's part grows with its reward: ``beta = 0`` is a majority, and a large ``beta``
    :class:`BestOfN`. A candidate that a factor of zero rules out has no weight.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param float beta: inverse temperature, not negative.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the posterior so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Soft Best-of-n Sampling for Model Alignment*, Claudio Mayrink Verdun et al. (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        beta: float = 10.0,
        *,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, callback=callback)
        self.beta = _checked(beta)

    def messenger(self) -> CandidateMessenger:
        return SoftMessenger(self.options, self.beta)

    @staticmethod
    def log_weights(scores: Tensor, beta: float) -> Tensor:
        """``beta (r - max r)`` of each candidate, which no large r makes nan; -inf where r is zero.

        :param Tensor scores: log r, the candidates along the first dimension.
        :param float beta: inverse temperature.
        :raises ValueError: for a ``beta`` out of range.
        """
        top = scores.amax(0, keepdim=True)
        behind = torch.where(scores == top, 0.0, torch.expm1(scores - top) * top.exp())
        # A beta of 0 leaves all that live alike.
        behind = behind * beta if _checked(beta) else torch.zeros_like(scores)
        return torch.where(scores == -torch.inf, scores, behind)


class SoftMessenger(CandidateMessenger):
    """A sweep without resampling whose posterior has softmax weights."""

    def __init__(self, options: FilterOptions, beta: float) -> None:
        super().__init__(options)
        self.beta = beta

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        scores = found.particles.weights.log_weights
        weights = Weights(SoftBestOfN.log_weights(scores, self.beta))
        reason = "it weighs solutions by a softmax of the rewards, whose mean does not estimate the evidence"
        return SearchPosterior.of(found, weights, scores=scores, method="soft best-of-N", reason=reason, decisive=True)


def _checked(beta: float) -> float:
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number, not negative, got {beta!r}")
    return float(beta)
