"""Votes over independent solutions: they choose and have no posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .batches import run_of
from .options import BATCH_NAMES, BATCHES, PARTICLES

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _vote(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return run_of(lambda particles, keywords: search(model, particles, **keywords), o, call)


BEST_OF_N = Method(
    "best-of-n",
    "BestOfN",
    "independent solutions, the one with the best score; no posterior",
    (PARTICLES, *BATCHES),
    _vote,
    budget=Budget("B samples, the best score", "best-of-n", free=BATCH_NAMES, shared=True),
    settles=True,
)

SELF_CONSISTENCY = Method(
    "self-consistency",
    "SelfConsistency",
    "majority of independent solutions, without scores",
    (PARTICLES, *BATCHES),
    _vote,
    budget=Budget("B samples, the most frequent answer", "majority", free=BATCH_NAMES, shared=True),
    scored=False,
    settles=True,
)

WEIGHTED_BEST_OF_N = Method(
    "weighted-best-of-n",
    "Importance",
    "independent solutions, each votes with its score (evaluate only; solve: importance)",
    (),
    None,
    budget=Budget("B samples, each votes with its score", "weighted", shared=True),
)

FAMILY = (BEST_OF_N, SELF_CONSISTENCY, WEIGHTED_BEST_OF_N)
