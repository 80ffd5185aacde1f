"""Accuracy against budget: records that survive anything, votes recomputed from them, and figures of merit."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .aggregators import Candidate, best_of_majority_at_k, log_score, majority, weighted_majority
    from .budget_ratio import BudgetRatio
    from .confidence_votes import borda_vote, deepconf_vote
    from .fitted_twist import fit_twist
    from .harness import PPLHarnessLM
    from .intervals import Interval, bootstrap, proportion
    from .metrics import pass_at_k
    from .records import Key, RecordStore, read_records
    from .results import Results
    from .run import evaluate
    from .solve_or_verify import allocations, frontier
    from .source import Models
    from .tables import accuracy_rows, as_text, difference_rows
    from .trained_reward import fit_reward

_MODULES = {
    "BudgetRatio": "budget_ratio",
    "Candidate": "aggregators",
    "Interval": "intervals",
    "Key": "records",
    "Models": "source",
    "PPLHarnessLM": "harness",
    "RecordStore": "records",
    "Results": "results",
    "accuracy_rows": "tables",
    "allocations": "solve_or_verify",
    "as_text": "tables",
    "best_of_majority_at_k": "aggregators",
    "bootstrap": "intervals",
    "borda_vote": "confidence_votes",
    "deepconf_vote": "confidence_votes",
    "difference_rows": "tables",
    "evaluate": "run",
    "fit_reward": "trained_reward",
    "fit_twist": "fitted_twist",
    "frontier": "solve_or_verify",
    "log_score": "aggregators",
    "majority": "aggregators",
    "pass_at_k": "metrics",
    "proportion": "intervals",
    "read_records": "records",
    "weighted_majority": "aggregators",
}

__all__ = [
    "BudgetRatio",
    "Candidate",
    "Interval",
    "Key",
    "Models",
    "PPLHarnessLM",
    "RecordStore",
    "Results",
    "accuracy_rows",
    "allocations",
    "as_text",
    "best_of_majority_at_k",
    "bootstrap",
    "borda_vote",
    "deepconf_vote",
    "difference_rows",
    "evaluate",
    "fit_reward",
    "fit_twist",
    "frontier",
    "log_score",
    "majority",
    "pass_at_k",
    "proportion",
    "read_records",
    "weighted_majority",
]


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
