"""Importance sampling and particle filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run, scheme
from .options import AUDIT, ESS_THRESHOLD, ISLANDS, MAX_TOKENS_TOTAL, PARTICLES, RESAMPLER

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _smc(smc: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {**model.preset.smc, **scheme(o), **call.keywords()}
    run: Run = smc(model, o["particles"], islands=o["islands"], max_tokens_total=o["max_tokens_total"], audit=o["audit"], **keywords).run
    return run


def _importance(importance: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = importance(model, o["particles"], audit=o["audit"], **call.keywords()).run
    return run


SMC = Method(
    "smc",
    "SMC",
    "particle filter: resamples solutions by their scores while they are written",
    (PARTICLES, RESAMPLER, ESS_THRESHOLD, ISLANDS, MAX_TOKENS_TOTAL, AUDIT),
    _smc,
    budget=Budget(
        "B particles, divided among the islands",
        "preset",
        lambda budget, o: {"particles": budget // o["islands"]},
        lambda o: int(o["islands"]),
        free=("islands", "resampler", "ess_threshold"),
    ),
    proposes=True,
    settles=True,
)

IMPORTANCE = Method(
    "importance",
    "Importance",
    "independent solutions, weighted by their scores (weighted best-of-N)",
    (PARTICLES, AUDIT),
    _importance,
    budget=Budget("B samples, weighted by the model's factors", "posterior", shared=True),
    proposes=True,
    settles=True,
)

FAMILY = (SMC, IMPORTANCE)
