"""Searches and votes: candidates instead of a posterior."""

from .base import Search
from .beam_search import BeamSearch
from .best_first import BestFirst
from .dvts import DVTS
from .mcts import MCTS
from .rebase import REBASE
from .votes import BestOfN, SelfConsistency

__all__ = ["DVTS", "MCTS", "REBASE", "BeamSearch", "BestFirst", "BestOfN", "Search", "SelfConsistency"]
