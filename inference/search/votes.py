"""Searches without selection: whole executions, and a vote over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..handlers.candidate_messenger import CandidateMessenger
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from .base import Search


class BestOfN(Search):
    """N independent executions of the model; the one with the highest weight wins (ties: the first).

    All particles stay in the result with their ``scores``, but only the best has a weight. :class:`Importance` is the same run with all
    weights kept: weighted best-of-N, which unlike this estimates the posterior.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param int max_plate_nesting: as for :class:`SMC`; the best of each independent problem.
    :param callback: called with the posterior so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Training Verifiers to Solve Math Word Problems*, Karl Cobbe et al. (2021).
    """

    def messenger(self) -> CandidateMessenger:
        return BestMessenger(self.options)


class BestMessenger(CandidateMessenger):
    """A sweep without resampling whose posterior has all weight on the best particle of each population."""

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        scores = found.particles.weights.log_weights
        weights = Weights(_of_the_best(scores))
        reason = "it gives all weight to the best candidate, whose weight does not estimate the evidence"
        return SearchPosterior.of(found, weights, scores=scores, method="best-of-N", reason=reason, decisive=True)


def _of_the_best(scores: Tensor) -> Tensor:
    """Log-weights ``[N, *plates]``: the score of the best particle of each population (ties: the first), and none of the others."""
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(0, scores.argmax(0, keepdim=True), True)
    return torch.where(best, scores, -torch.inf)


def only_the_best(found: Sequence[ParticlePosterior]) -> tuple[list[Tensor], Tensor]:
    """The log-weights of several runs of :class:`BestOfN` as if they were one, and the scores of all their particles."""
    scores = [each.scores for each in found if isinstance(each, SearchPosterior) and each.scores is not None]
    joint = torch.cat([each.reshape(posterior.particles.weights.log_weights.shape) for each, posterior in zip(scores, found, strict=True)])
    return list(_of_the_best(joint).split([len(each) for each in scores])), joint


class SelfConsistency(Search):
    """N independent draws from the model's prior with equal weights: ``posterior.answers()`` is the majority vote.

    Observed sites are not evaluated: reward models are not called, and constraints and likelihoods do not count.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the posterior so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Self-Consistency Improves Chain of Thought Reasoning in Language Models*, Xuezhi Wang et al. (2023).
    """

    def messenger(self) -> CandidateMessenger:
        return PriorMessenger(self.options)


class PriorMessenger(CandidateMessenger):
    """A sweep without resampling that evaluates no density."""

    def _needs_log_prob(self, msg: Any) -> bool:
        return False

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        particles = found.particles._replace(log_likelihood=None)  # never evaluated
        return SearchPosterior(particles, method="self-consistency", reason="it does not evaluate what the model observes", decisive=True)
