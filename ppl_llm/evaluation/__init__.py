"""Accuracy against budget: records that survive anything, votes recomputed from them, and figures of merit."""

from .aggregators import Candidate
from .intervals import Interval, bootstrap
from .metrics import pass_at_k
from .records import Key, RecordStore, read_records
from .results import Results
from .run import evaluate
from .source import Models

__all__ = ["Candidate", "Interval", "Key", "Models", "RecordStore", "Results", "bootstrap", "evaluate", "pass_at_k", "read_records"]
