"""What a deterministic search returns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..particles.weighted_particles import WeightedParticles
from ..particles.weights import Weights
from .particle_posterior import ParticlePosterior

NOT_PROPORTIONAL = "it does not keep candidates in proportion to their weights, so their mean weight does not estimate the evidence"


class SearchPosterior(ParticlePosterior):
    """The candidates of a search that selects by score.

    Votes are the same as for any posterior: :attr:`weights`, :meth:`answers`, :meth:`marginal`. But the weights are those of a voting rule:
    no expectation under them estimates one under the model's posterior, and there is no evidence.

    :ivar Tensor scores: ``[N, *P]`` float64, the cumulative log-weight of each candidate; ``None`` where nothing was scored.
    :ivar str method: name of the search.
    :ivar str reason: why it gives no evidence.
    :ivar bool decisive: whether the weights alone make the choice, whatever vote a model prefers.
    :ivar bool additive: whether one more candidate adds its weight to its answer and changes no other weight.
    """

    estimates_posterior: ClassVar[bool] = False
    additive: bool = True

    def __init__(
        self,
        particles: WeightedParticles,
        *,
        scores: Tensor | None = None,
        method: str = "a search",
        reason: str = NOT_PROPORTIONAL,
        decisive: bool = False,
    ) -> None:
        super().__init__(particles)
        self.scores = None if scores is None else scores[self.particles.public]
        self.method, self.reason, self.decisive = method, reason, decisive

    @classmethod
    def of(cls, found: ParticlePosterior, weights: Weights | None = None, **kwargs: Any) -> SearchPosterior:
        """The particles of a sweep, perhaps with other weights; ``kwargs`` as for the class."""
        return cls(found.particles if weights is None else found.particles._replace(weights=weights), **kwargs)

    @property
    def log_evidence(self) -> Tensor:
        raise ValueError(f"{self.method} gives no evidence: {self.reason}. Run SMC or Importance on the same model.")

    def diagnostics(self) -> dict[str, Any]:
        """As for every posterior, and ``method`` and, where something was scored, the ``scores`` of the candidates."""
        scores = {} if self.scores is None else {"scores": self.scores.tolist()}
        return {**super().diagnostics(), "method": self.method, **scores}

    def __repr__(self) -> str:
        shape = tuple(self.log_weights.shape)
        with_weight = int((self.weights > 0).sum()) if torch.isfinite(self.weights).all() else 0
        candidates = f"{shape[0]} candidates" if len(shape) == 1 else f"{shape[0]} candidates of each of {shape[1:]} problems"
        return f"SearchPosterior({self.method}: {candidates}, {with_weight} with a vote, {len(self.particles.records)} barriers)"
