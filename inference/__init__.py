"""Inference algorithms and handlers for any Pyro model; nothing here knows of language models."""

from pyro import barrier

from .audit_messenger import AuditMessenger, AuditReport
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .chain_posterior import ChainPosterior, PooledPosterior
from .cost import CostMeter, count
from .discrete_marginal import DiscreteMarginal
from .dvts import DVTS
from .entropic_annealing import EntropicAnnealing
from .enumeration import Enumeration
from .errors import AuditError, SMCFailed
from .importance import Importance
from .island_posterior import IslandPosterior
from .parallel_tempering import ParallelTempering, ParallelTemperingPosterior
from .particle_gibbs import ParticleGibbs
from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .pimh import PIMH
from .pmmh import PMMH
from .proposal_messenger import ProposalMessenger
from .reference_messenger import ReferenceMessenger
from .replicate import replicate
from .representatives import Equivalent, representatives
from .resampling import RESAMPLERS, ConditionalResampler, Resampler, multinomial, residual, ssp, stratified, systematic
from .run_concurrently import run_concurrently
from .search_posterior import SearchPosterior
from .selection import Selection
from .self_consistency import SelfConsistency
from .smc import SMC
from .suffix_mh import SuffixMH
from .temper_messenger import TemperMessenger
from .tempered_posterior import TemperedPosterior
from .tempered_smc import TemperedSMC
from .trajectory import Trajectory
from .trajectory_kernel import TrajectoryKernel
from .weights import Weights

__all__ = [
    "DVTS",
    "PIMH",
    "PMMH",
    "RESAMPLERS",
    "SMC",
    "AuditError",
    "AuditMessenger",
    "AuditReport",
    "BeamSearch",
    "BestOfN",
    "ChainPosterior",
    "ConditionalResampler",
    "CostMeter",
    "DiscreteMarginal",
    "EntropicAnnealing",
    "Enumeration",
    "Equivalent",
    "Importance",
    "IslandPosterior",
    "ParallelTempering",
    "ParallelTemperingPosterior",
    "ParticleGibbs",
    "ParticleMessenger",
    "ParticlePosterior",
    "PooledPosterior",
    "ProposalMessenger",
    "ReferenceMessenger",
    "Resampler",
    "SMCFailed",
    "SearchPosterior",
    "Selection",
    "SelfConsistency",
    "SuffixMH",
    "TemperMessenger",
    "TemperedPosterior",
    "TemperedSMC",
    "Trajectory",
    "TrajectoryKernel",
    "Weights",
    "barrier",
    "count",
    "multinomial",
    "replicate",
    "representatives",
    "residual",
    "run_concurrently",
    "ssp",
    "stratified",
    "systematic",
]
