"""Searches and votes: candidates instead of a posterior."""

from .ab_mcts import ABMCTS
from .base import Search
from .beam_search import BeamSearch
from .best_first import BestFirst
from .dora import DORA
from .dvts import DVTS
from .mcts import MCTS
from .prefix_search import PrefixSearch
from .rebase import REBASE
from .score_posterior import BetaScores, NormalScores
from .speculative_rejection import SpeculativeRejection
from .votes import BestOfN, SelfConsistency

__all__ = [
    "ABMCTS",
    "DORA",
    "DVTS",
    "MCTS",
    "REBASE",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "BetaScores",
    "NormalScores",
    "PrefixSearch",
    "Search",
    "SelfConsistency",
    "SpeculativeRejection",
]
