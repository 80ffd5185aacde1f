"""Votes over independent solutions: they choose and have no posterior."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .batches import run_of
from .options import BATCH_NAMES, BATCHES, CONFIDENCE, ETA, INITIAL, PARTICLES

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _vote(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return run_of(lambda particles, keywords: search(model, particles, **keywords), o, call)


def _deepconf(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    from ..reward.confidence import Confidence

    surer = copy.copy(model)
    surer.confidence = Confidence.parse(o["confidence"])
    keywords = {"callback": call.callback, "max_plate_nesting": call.max_plate_nesting}
    run: Run = search(surer, o["particles"], eta=o["eta"], initial=o["initial"], **keywords).run
    return run


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

DEEPCONF = Method(
    "deepconf",
    "DeepConf",
    "majority of the solutions that the language model was surest of, without scores",
    (PARTICLES, ETA, INITIAL, CONFIDENCE),
    _deepconf,
    budget=Budget("B samples, the surest vote by their confidence", "deepconf", shared=True),
    scored=False,
)

FAMILY = (BEST_OF_N, SELF_CONSISTENCY, WEIGHTED_BEST_OF_N, DEEPCONF)
