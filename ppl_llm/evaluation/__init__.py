"""Accuracy against budget: records that survive anything, votes recomputed from them, and figures of merit."""

from .aggregators import Candidate
from .budget_ratio import BudgetRatio
from .intervals import Interval, bootstrap, proportion
from .metrics import pass_at_k
from .records import Key, RecordStore, read_records
from .results import Results
from .run import evaluate
from .source import Models

__all__ = [
    "BudgetRatio",
    "Candidate",
    "Interval",
    "Key",
    "Models",
    "RecordStore",
    "Results",
    "bootstrap",
    "evaluate",
    "pass_at_k",
    "proportion",
    "read_records",
]
