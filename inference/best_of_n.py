"""Best-of-N."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .resampling import multinomial
from .search import Search
from .search_posterior import SearchPosterior
from .weights import Weights


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

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, callback=callback)

    def messenger(self) -> ParticleMessenger:
        return BestMessenger(self.num_particles, self.max_plate_nesting, multinomial, 0.0, callback=self.callback)

    def conclude(self, messenger: Any, ended: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        assert isinstance(ended, SearchPosterior)
        return ended


class BestMessenger(ParticleMessenger):
    """A sweep without resampling whose posterior has all weight on the best lane of each population."""

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        scores = found._weights.log_weights
        best = torch.zeros_like(scores, dtype=torch.bool).scatter(0, scores.argmax(0, keepdim=True), True)
        weights = Weights(torch.where(best, scores, -torch.inf))
        reason = "it gives all weight to the best candidate, whose weight does not estimate the evidence"
        return SearchPosterior.of(found, weights, scores=scores, method="best-of-N", reason=reason, decisive=True)

    def posterior(self, value: Any) -> SearchPosterior:
        return self.as_search(super().posterior(value))

    @property
    def partial(self) -> SearchPosterior | None:
        found = super().partial
        return None if found is None else self.as_search(found)
