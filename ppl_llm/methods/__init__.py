"""The registry of methods: what ``solve``, ``evaluate``, ``methods``, shell completion and the documentation know of each algorithm.

Nothing here imports torch before a method is built.
"""

from .base import Budget, Call, Method
from .options import MODEL_OPTIONS, Option
from .registry import (
    BUDGETED,
    BY_OPTION,
    IN_PYTHON_ONLY,
    METHODS,
    SOLVING,
    BudgetedMethod,
    ChosenMethod,
    check_proposes,
    get_method,
    independent,
    parse_method,
)
from .table import markdown_table

__all__ = [
    "BUDGETED",
    "BY_OPTION",
    "IN_PYTHON_ONLY",
    "METHODS",
    "MODEL_OPTIONS",
    "SOLVING",
    "Budget",
    "BudgetedMethod",
    "Call",
    "ChosenMethod",
    "Method",
    "Option",
    "check_proposes",
    "get_method",
    "independent",
    "markdown_table",
    "parse_method",
]
