"""Budgets that adapt, and the rules that tell when a vote is settled."""

from .adaptive import Adaptive
from .beta_majority import BetaMajority
from .group_agreement import GroupAgreement
from .pandora import Pandora
from .same_answers import SameAnswers
from .share import Share
from .stopping_rule import StoppingRule

__all__ = ["Adaptive", "BetaMajority", "GroupAgreement", "Pandora", "SameAnswers", "Share", "StoppingRule"]
