"""Importance sampling and particle filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run, scheme
from .batches import run_of
from .options import AUDIT, BATCH_NAMES, BATCHES, ESS_THRESHOLD, ISLANDS, MAX_TOKENS_TOTAL, PARTICLES, RESAMPLER

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _smc(smc: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    given = {**model.preset.smc, **scheme(o), "audit": o["audit"]}
    if o["until"] is None:
        given |= {"islands": o["islands"], "max_tokens_total": o["max_tokens_total"]}
    return run_of(lambda particles, keywords: smc(model, particles, **given, **keywords), o, call)


def _importance(importance: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return run_of(lambda particles, keywords: importance(model, particles, audit=o["audit"], **keywords), o, call)


SMC = Method(
    "smc",
    "SMC",
    "particle filter: resamples solutions by their scores while they are written",
    (PARTICLES, RESAMPLER, ESS_THRESHOLD, ISLANDS, *BATCHES, MAX_TOKENS_TOTAL, AUDIT),
    _smc,
    budget=Budget(
        "B particles, divided among the islands",
        "preset",
        lambda budget, o: {"particles": budget // o["islands"]},
        lambda o: int(o["islands"]),
        free=("islands", "resampler", "ess_threshold", *BATCH_NAMES),
    ),
    proposes=True,
    settles=True,
)

IMPORTANCE = Method(
    "importance",
    "Importance",
    "independent solutions, weighted by their scores (weighted best-of-N)",
    (PARTICLES, *BATCHES, AUDIT),
    _importance,
    budget=Budget("B samples, weighted by the model's factors", "posterior", free=BATCH_NAMES, shared=True),
    proposes=True,
    settles=True,
)

FAMILY = (SMC, IMPORTANCE)
