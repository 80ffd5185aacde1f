"""What tempered sequential Monte Carlo returns."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..particles.history import History, ResamplingRecord, Site
from ..particles.trajectory import Trajectory
from ..particles.weighted_particles import WeightedParticles
from ..particles.weights import Weights
from .particle_posterior import ParticlePosterior


class Stage(NamedTuple):
    """One power of the likelihood ``[*plates]``, its resampling, the evidence up to it ``[*plates]``, and moves that changed a particle."""

    beta: Tensor
    record: ResamplingRecord
    log_evidence: Tensor
    move_rate: Tensor


class TemperedPosterior(ParticlePosterior):
    """Weighted executions of a model, at the last power of a ladder of S stages.

    A :class:`ParticlePosterior` whose steps are the stages of the ladder, not the barriers of the model: :attr:`ess`, :attr:`ancestors`
    and :attr:`resampled` have one row per stage.
    """

    unit: ClassVar[str] = "stage"

    def __init__(self, particles: Trajectory, weights: Weights, plate_dims: tuple[int, ...], stages: list[Stage]) -> None:
        super().__init__(
            WeightedParticles(
                weights,
                plate_dims,
                tuple(Site(name, value, None, len(stages)) for name, value in particles.items()),
                tuple(stage.record for stage in stages),
                particles.value,
                lengths=particles.length,
                log_likelihood=particles.log_likelihood,
            )
        )
        self._stages = stages

    @cached_property
    def history(self) -> History:
        """Of the stages; of the executions before the last move only the weights are kept."""
        return History.of((), self.particles.records, self.particles.weights.log_weights)

    @property
    def betas(self) -> Tensor:
        """``[S, *P]``: power of the likelihood at each stage."""
        return self._stacked([stage.beta[self.particles.public] for stage in self._stages], self.log_weights[0])

    @property
    def log_evidences(self) -> Tensor:
        """``[S, *P]``: log of the estimated evidence of the tempered model at each stage."""
        return self._stacked([stage.log_evidence[self.particles.public] for stage in self._stages], self.log_weights[0])

    @property
    def move_rates(self) -> Tensor:
        """``[S, *P]``: fraction of the moves of each stage that changed their particle."""
        return self._stacked([stage.move_rate[self.particles.public] for stage in self._stages], self.log_weights[0])

    def diagnostics(self) -> dict[str, Any]:
        """As for every posterior, and ``betas`` and ``move_rates`` of each stage."""
        return {**super().diagnostics(), "betas": self.betas.tolist(), "move_rates": self.move_rates.tolist()}

    def __repr__(self) -> str:
        return super().__repr__().replace("ParticlePosterior", "TemperedPosterior", 1).replace("barriers", "stages", 1)
