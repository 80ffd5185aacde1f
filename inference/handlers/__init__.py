"""Effect handlers: a particle filter and its relatives as Pyro messengers."""

from .audit_messenger import AuditMessenger
from .filter_options import FilterOptions
from .particle_messenger import ParticleMessenger
from .proposal_messenger import ProposalMessenger, Proposals
from .reference_messenger import ReferenceMessenger
from .temper_messenger import TemperMessenger

__all__ = [
    "AuditMessenger",
    "FilterOptions",
    "ParticleMessenger",
    "ProposalMessenger",
    "Proposals",
    "ReferenceMessenger",
    "TemperMessenger",
]
