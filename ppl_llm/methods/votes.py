"""Votes over independent solutions: they choose and have no posterior."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .batches import run_of
from .options import (
    BATCH,
    BATCH_NAMES,
    BATCHES,
    BETA,
    CONFIDENCE,
    DOUBLING,
    ETA,
    FREQUENCY,
    INITIAL,
    PARTICLES,
    TEMPERATURES,
    UNTIL,
    K,
    parse_temperatures,
)

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _vote(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return run_of(lambda particles, keywords: search(model, particles, **keywords), o, call)


def _soft(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return call.run_of(search(model, o["particles"], o["beta"], **call.keywords()))


def _majority(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return call.run_of(search(model, o["particles"], o["k"], o["frequency"], equivalent=call.equivalent, **call.keywords()))


def _temperatures(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    from ..programs.multi_temperature import SITE, multi_temperature

    tempered = multi_temperature(model, parse_temperatures(o["temperatures"]))
    number = len(tempered.temperatures)
    if o["until"] is not None and o["batch"] is None:
        o = {**o, "batch": min(number, o["particles"])}

    def make(particles: int, keywords: dict[str, Any]) -> Any:
        if particles % number:
            what = "batch" if o["until"] is not None else "particles"
            raise ValueError(f"{what} must be a multiple of the number of temperatures ({number}), got {particles}")
        return search(tempered, particles, SITE, equivalent=call.equivalent, **keywords)

    return run_of(make, o, call)


def _evenly(budget: int, o: Options) -> dict[str, Any]:
    number = len(parse_temperatures(o["temperatures"]))
    return {"particles": budget // number * number}


def _deepconf(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    from ..reward.confidence import Confidence

    surer = copy.copy(model)
    surer.confidence = Confidence.parse(o["confidence"])
    keywords = {"callback": call.callback, "max_plate_nesting": call.max_plate_nesting}
    return call.run_of(search(surer, o["particles"], eta=o["eta"], initial=o["initial"], **keywords))


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

SOFT_BEST_OF_N = Method(
    "soft-best-of-n",
    "SoftBestOfN",
    "independent solutions, each votes with the softmax of its reward; no posterior",
    (PARTICLES, BETA),
    _soft,
    budget=Budget("B samples, each votes with softmax(beta r)", "soft-best-of-n", free=("beta",), shared=True, voting=("beta",)),
    settles=True,
)

BEST_OF_MAJORITY = Method(
    "best-of-majority",
    "BestOfMajority",
    "independent solutions, the best of the frequent answers; no posterior",
    (PARTICLES, K, FREQUENCY),
    _majority,
    budget=Budget(
        "B samples, the k best of the frequent answers",
        "best-of-majority",
        free=("k", "frequency"),
        shared=True,
        voting=("k", "frequency"),
    ),
    settles=True,
)

MULTI_TEMPERATURE = Method(
    "multi-temperature",
    "TwoStageVote",
    "majority within each of several temperatures, then across them, without scores",
    (PARTICLES.by_default(24), TEMPERATURES, UNTIL, BATCH, DOUBLING),
    _temperatures,
    budget=Budget(
        "B samples, as many at each temperature",
        "shares",
        _evenly,
        lambda o: len(parse_temperatures(o["temperatures"])),
        free=("temperatures", *BATCH_NAMES),
    ),
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

FAMILY = (BEST_OF_N, SELF_CONSISTENCY, SOFT_BEST_OF_N, BEST_OF_MAJORITY, MULTI_TEMPERATURE, WEIGHTED_BEST_OF_N, DEEPCONF)
