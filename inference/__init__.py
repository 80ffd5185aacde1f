"""Inference algorithms and handlers for any Pyro model; nothing here knows of language models."""

from pyro import barrier

from .audit_messenger import AuditMessenger, AuditReport
from .cost import CostMeter, count
from .discrete_marginal import DiscreteMarginal
from .enumeration import Enumeration
from .errors import AuditError, SMCFailed
from .importance import Importance
from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .proposal_messenger import ProposalMessenger
from .resampling import RESAMPLERS, Resampler, multinomial, residual, ssp, stratified, systematic
from .smc import SMC
from .weights import Weights

__all__ = [
    "RESAMPLERS",
    "SMC",
    "AuditError",
    "AuditMessenger",
    "AuditReport",
    "CostMeter",
    "DiscreteMarginal",
    "Enumeration",
    "Importance",
    "ParticleMessenger",
    "ParticlePosterior",
    "ProposalMessenger",
    "Resampler",
    "SMCFailed",
    "Weights",
    "barrier",
    "count",
    "multinomial",
    "residual",
    "ssp",
    "stratified",
    "systematic",
]
