"""Best-of-N."""

from __future__ import annotations

import torch

from ..handlers.candidate_messenger import VotingMessenger
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..resampling import multinomial
from .base import Search


class BestOfN(Search):
    """N independent executions of the model, of which the one with the highest weight is taken (ties: the first).

    All lanes stay in the result with their ``scores``, but only the best has a weight. :class:`Importance` is the same run with all weights
    kept: weighted best-of-N, and unlike this one an estimate of the posterior.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param int max_plate_nesting: as for :class:`SMC`; the best of each independent problem.
    :param callback: called with the posterior so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Training Verifiers to Solve Math Word Problems*, Karl Cobbe et al. (2021).
    """

    def messenger(self) -> VotingMessenger:
        return BestMessenger(self.num_particles, self.max_plate_nesting, multinomial, 0.0, callback=self.callback)


class BestMessenger(VotingMessenger):
    """A sweep without resampling whose posterior has all weight on the best lane of each population."""

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        scores = found._weights.log_weights
        best = torch.zeros_like(scores, dtype=torch.bool).scatter(0, scores.argmax(0, keepdim=True), True)
        weights = Weights(torch.where(best, scores, -torch.inf))
        reason = "it gives all weight to the best candidate, whose weight does not estimate the evidence"
        return SearchPosterior.of(found, weights, scores=scores, method="best-of-N", reason=reason, decisive=True)
