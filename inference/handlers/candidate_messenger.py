"""Sweeps that return candidates instead of a posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..particles.snapshot import Snapshot
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from .particle_messenger import ParticleMessenger


class CandidateMessenger(ParticleMessenger, ABC):
    """A sweep whose particles are candidates: its posteriors are :class:`SearchPosterior`, at barriers too."""

    @abstractmethod
    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        """The candidates with the weights of their votes."""

    def posterior(self, snapshot: Snapshot) -> SearchPosterior:
        return self.as_search(super().posterior(snapshot))
