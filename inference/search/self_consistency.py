"""Self-consistency."""

from __future__ import annotations

from typing import Any

from ..handlers.candidate_messenger import VotingMessenger
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..resampling import multinomial
from .base import Search


class SelfConsistency(Search):
    """N independent draws from the model's prior with equal weights: ``posterior.answers()`` is the majority vote.

    What the model observes is not evaluated: a reward model is never called, and neither hard constraints nor likelihoods count.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the posterior so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Self-Consistency Improves Chain of Thought Reasoning in Language Models*, Xuezhi Wang et al. (2023).
    """

    def messenger(self) -> VotingMessenger:
        return PriorMessenger(self.num_particles, self.max_plate_nesting, multinomial, 0.0, callback=self.callback)


class PriorMessenger(VotingMessenger):
    """A sweep without resampling that evaluates no density."""

    def _needs_log_prob(self, msg: Any) -> bool:
        return False

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        reason = "it does not evaluate what the model observes"
        posterior = SearchPosterior.of(found, method="self-consistency", reason=reason, decisive=True)
        posterior._log_likelihood = None  # never evaluated
        return posterior
