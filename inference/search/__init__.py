"""Searches and votes: candidates instead of a posterior."""

from .base import Search
from .beam_search import BeamSearch
from .dvts import DVTS
from .rebase import REBASE
from .votes import BestOfN, SelfConsistency

__all__ = ["DVTS", "REBASE", "BeamSearch", "BestOfN", "Search", "SelfConsistency"]
