"""What algorithms return."""

from .audit_report import AuditReport
from .chain_posterior import ChainPosterior, PooledPosterior
from .discrete_marginal import DiscreteMarginal
from .equivalence_classes import Equivalent, representatives
from .island_posterior import IslandPosterior
from .particle_posterior import ParticlePosterior
from .search_posterior import SearchPosterior
from .tempered_posterior import TemperedPosterior

__all__ = [
    "AuditReport",
    "ChainPosterior",
    "DiscreteMarginal",
    "Equivalent",
    "IslandPosterior",
    "ParticlePosterior",
    "PooledPosterior",
    "SearchPosterior",
    "TemperedPosterior",
    "representatives",
]
