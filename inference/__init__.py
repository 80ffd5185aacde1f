"""Inference algorithms and handlers for any Pyro model; nothing here knows of language models."""

from pyro import barrier

from .adaptive import Adaptive, BetaMajority, GroupAgreement, Pandora, SameAnswers, Share, StoppingRule
from .concurrent import ProgramServer, run_concurrently
from .cost import CostMeter, count
from .enumeration import Enumeration
from .errors import AuditError, SMCFailed
from .handlers.audit_messenger import AuditMessenger
from .handlers.filter_options import FilterOptions
from .handlers.particle_messenger import ParticleMessenger
from .handlers.power_messenger import PowerMessenger, power
from .handlers.proposal_messenger import ProposalMessenger
from .handlers.reference_messenger import ReferenceMessenger
from .handlers.rejuvenate_messenger import RejuvenateMessenger
from .handlers.temper_messenger import TemperMessenger
from .handlers.until_messenger import UntilMessenger, until
from .importance import Importance
from .mcmc.block_mh import BlockMH
from .mcmc.parallel_tempering import ParallelTempering, ParallelTemperingPosterior
from .mcmc.particle_gibbs import ParticleGibbs
from .mcmc.pimh import PIMH
from .mcmc.pmmh import PMMH
from .mcmc.prefix_walk import PrefixWalk
from .mcmc.replicate import replicate
from .mcmc.suffix_mh import SuffixMH
from .mcmc.trajectory_kernel import TrajectoryKernel
from .particles.trajectory import Trajectory
from .particles.weights import Weights
from .posterior.adaptive_posterior import AdaptivePosterior
from .posterior.audit_report import AuditReport
from .posterior.chain_posterior import ChainPosterior, PooledPosterior
from .posterior.decision import Decision
from .posterior.discrete_marginal import DiscreteMarginal
from .posterior.equivalence_classes import Equivalent, representatives
from .posterior.island_posterior import IslandPosterior
from .posterior.particle_posterior import ParticlePosterior
from .posterior.search_posterior import SearchPosterior
from .posterior.tempered_posterior import TemperedPosterior
from .resampling import RESAMPLERS, ConditionalResampler, Resampler, multinomial, residual, ssp, stratified, systematic
from .resampling.entropic_annealing import EntropicAnnealing
from .resampling.selection import Selection
from .search.ab_mcts import ABMCTS
from .search.beam_search import BeamSearch
from .search.best_first import BestFirst
from .search.best_of_majority import BestOfMajority
from .search.dora import DORA
from .search.dvts import DVTS
from .search.mcts import MCTS
from .search.rebase import REBASE
from .search.score_posterior import BetaScores, NormalScores
from .search.soft_best_of_n import SoftBestOfN
from .search.speculative_rejection import SpeculativeRejection
from .search.two_stage_vote import TwoStageVote
from .search.votes import BestOfN, SelfConsistency
from .smc import SMC
from .tempered_smc import TemperedSMC
from .viewer.explanation import Explanation
from .waste_free_smc import WasteFreeSMC

__all__ = [
    "ABMCTS",
    "DORA",
    "DVTS",
    "MCTS",
    "PIMH",
    "PMMH",
    "REBASE",
    "RESAMPLERS",
    "SMC",
    "Adaptive",
    "AdaptivePosterior",
    "AuditError",
    "AuditMessenger",
    "AuditReport",
    "BeamSearch",
    "BestFirst",
    "BestOfMajority",
    "BestOfN",
    "BetaMajority",
    "BetaScores",
    "BlockMH",
    "ChainPosterior",
    "ConditionalResampler",
    "CostMeter",
    "Decision",
    "DiscreteMarginal",
    "EntropicAnnealing",
    "Enumeration",
    "Equivalent",
    "Explanation",
    "FilterOptions",
    "GroupAgreement",
    "Importance",
    "IslandPosterior",
    "NormalScores",
    "Pandora",
    "ParallelTempering",
    "ParallelTemperingPosterior",
    "ParticleGibbs",
    "ParticleMessenger",
    "ParticlePosterior",
    "PooledPosterior",
    "PowerMessenger",
    "PrefixWalk",
    "ProgramServer",
    "ProposalMessenger",
    "ReferenceMessenger",
    "RejuvenateMessenger",
    "Resampler",
    "SMCFailed",
    "SameAnswers",
    "SearchPosterior",
    "Selection",
    "SelfConsistency",
    "Share",
    "SoftBestOfN",
    "SpeculativeRejection",
    "StoppingRule",
    "SuffixMH",
    "TemperMessenger",
    "TemperedPosterior",
    "TemperedSMC",
    "Trajectory",
    "TrajectoryKernel",
    "TwoStageVote",
    "UntilMessenger",
    "WasteFreeSMC",
    "Weights",
    "barrier",
    "count",
    "multinomial",
    "power",
    "replicate",
    "representatives",
    "residual",
    "run_concurrently",
    "ssp",
    "stratified",
    "systematic",
    "until",
]
