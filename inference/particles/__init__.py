"""The particles of a run: weights, sites, resampling records, and what models thread through barriers."""

from .history import History, ResamplingRecord, Site
from .particle_system import ParticleSystem
from .state import PooledState, State, StateThatEnds, StateWithAnswers, StateWithCache
from .trajectory import ChainRecord, Trajectory
from .weighted_particles import WeightedParticles
from .weights import Weights

__all__ = [
    "ChainRecord",
    "History",
    "ParticleSystem",
    "PooledState",
    "ResamplingRecord",
    "Site",
    "State",
    "StateThatEnds",
    "StateWithAnswers",
    "StateWithCache",
    "Trajectory",
    "WeightedParticles",
    "Weights",
]
