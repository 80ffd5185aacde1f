"""Accuracy against budget: records that survive anything, votes recomputed from them, and figures of merit."""

from .aggregators import Candidate
from .intervals import Interval, bootstrap
from .metrics import pass_at_k
from .records import Key, RecordStore, read_records

__all__ = ["Candidate", "Interval", "Key", "RecordStore", "bootstrap", "pass_at_k", "read_records"]
