"""Markov chains over program executions, also kernels of ``pyro.infer.MCMC``."""

from .parallel_tempering import ParallelTempering, ParallelTemperingPosterior
from .particle_gibbs import ParticleGibbs
from .pimh import PIMH
from .pmmh import PMMH
from .replicate import replicate
from .suffix_mh import SuffixMH
from .trajectory_kernel import TrajectoryKernel

__all__ = [
    "PIMH",
    "PMMH",
    "ParallelTempering",
    "ParallelTemperingPosterior",
    "ParticleGibbs",
    "SuffixMH",
    "TrajectoryKernel",
    "replicate",
]
