"""Importance sampling and particle filters."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run, moves, scheme
from .batches import run_of
from .options import AUDIT, BATCH_NAMES, BATCHES, ESS_THRESHOLD, ISLANDS, MAX_TOKENS_TOTAL, MOVE_EVERY, MOVES, PARTICLES, RESAMPLER

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


MOVES_COST = Fraction(5, 4)
"""Complete solutions that a move of each beginning of a solution of 4 steps writes."""


def _smc(smc: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    given = {**model.preset.smc, **scheme(o), **moved(o), "audit": o["audit"]}
    if o["until"] is None:
        given |= {"islands": o["islands"], "max_tokens_total": o["max_tokens_total"]}
    return run_of(lambda particles, keywords: smc(model, particles, **given, **keywords), o, call)


def moved(o: Options) -> dict[str, Any]:
    """The keywords of moves."""
    return {"rejuvenate": moves("suffix-mh"), "moves": o["moves"], "move_every": o["move_every"]} if o["moves"] else {}


def _filter_sizes(budget: int, o: Options) -> dict[str, Any]:
    # A particle is written once; a move rewrites half of what there is at each of 4 steps, (1 + 2 + 3 + 4) / 8 solutions.
    return {"particles": int(budget / (1 + MOVES_COST * o["moves"] / o["move_every"]) / o["islands"])}


def _filter_least(o: Options) -> int:
    return int(-(-(1 + MOVES_COST * o["moves"] / o["move_every"]) * o["islands"] // 1))


def _importance(importance: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return run_of(lambda particles, keywords: importance(model, particles, audit=o["audit"], **keywords), o, call)


_FILTER = (PARTICLES, RESAMPLER, ESS_THRESHOLD, ISLANDS, MOVES, MOVE_EVERY, *BATCHES, MAX_TOKENS_TOTAL, AUDIT)
_FREE = ("islands", "resampler", "ess_threshold", "moves", "move_every", *BATCH_NAMES)

SMC = Method(
    "smc",
    "SMC",
    "particle filter: resamples solutions by their scores while they are written",
    _FILTER,
    _smc,
    budget=Budget("B particles and their moves, divided among the islands", "preset", _filter_sizes, _filter_least, free=_FREE),
    proposes=True,
    settles=True,
    tempers=True,
)

POWER_SMC = Method(
    "power-smc",
    "SMC",
    "particle filter for p(solution)^4, what the language model finds probable; needs no scores",
    _FILTER,
    _smc,
    budget=Budget("B particles and their moves, divided among the islands", "preset", _filter_sizes, _filter_least, free=_FREE),
    proposes=True,
    power=4.0,
    tempers=True,
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
    tempers=True,
)

FAMILY = (SMC, POWER_SMC, IMPORTANCE)
