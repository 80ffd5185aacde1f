"""Populations of whole solutions along a ladder of powers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run, moves, scheme
from .chains import MOVE_COST
from .options import BETAS, CHAIN_LENGTH, ESS_THRESHOLD, KERNEL, PARTICLES, RESAMPLER, parse_betas

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel

_RESAMPLING = (RESAMPLER.by_default("systematic"), ESS_THRESHOLD.by_default(0.5))
_LADDER = {"betas": "0.25,1"}
"""Under a budget: how many stages an adaptive ladder takes is not known beforehand."""


def _tempered_smc(smc: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {**scheme(o), **call.keywords()}
    return call.run_of(smc(model, o["particles"], betas=parse_betas(o["betas"]), kernel=moves(o["kernel"]), **keywords))


def _waste_free_smc(smc: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {"chain_length": o["chain_length"], **scheme(o), **call.keywords()}
    return call.run_of(smc(model, o["particles"], betas=parse_betas(o["betas"]), kernel=moves(o["kernel"]), **keywords))


def _stages(o: Options) -> int:
    betas = parse_betas(o["betas"])
    if betas == "adaptive":
        raise ValueError("betas must be powers such as 0.25,1 where a budget is given: an adaptive ladder costs what it costs")
    return sum(beta > 0 for beta in betas)


def _tempered_sizes(budget: int, o: Options) -> dict[str, Any]:
    # Each particle is written once and moved once in each of the S stages: N (1 + S cost) = B.
    return {"particles": int(budget / (1 + _stages(o) * MOVE_COST[o["kernel"]]))}


def _tempered_least(o: Options) -> int:
    return _rounded_up(1 + _stages(o) * MOVE_COST[o["kernel"]])


def _chain_cost(o: Options) -> Any:
    """Of a chain of k particles: they are written once, and k - 1 moves are made in each of the S stages."""
    return o["chain_length"] + _stages(o) * (o["chain_length"] - 1) * MOVE_COST[o["kernel"]]


def _rounded_up(cost: Any) -> int:
    return int(-(-cost // 1))


TEMPERED_SMC = Method(
    "tempered-smc",
    "TemperedSMC",
    "whole solutions, reweighted and moved while the scores gain power",
    (PARTICLES, *_RESAMPLING, BETAS, KERNEL),
    _tempered_smc,
    "stage",
    Budget(
        "particles such that they and their moves write B solutions: B / 2 at two stages",
        "posterior",
        _tempered_sizes,
        _tempered_least,
        free=("resampler", "ess_threshold", "betas", "kernel"),
        defaults=_LADDER,
    ),
)

WASTE_FREE_SMC = Method(
    "waste-free-smc",
    "WasteFreeSMC",
    "tempered SMC that keeps every state of the chains that move its particles",
    (PARTICLES, CHAIN_LENGTH, *_RESAMPLING, BETAS, KERNEL),
    _waste_free_smc,
    "stage",
    Budget(
        "chains such that they and their moves write B solutions: B / 7 of 4 states each at two stages",
        "posterior",
        lambda budget, o: {"particles": int(budget / _chain_cost(o)) * o["chain_length"]},
        lambda o: _rounded_up(_chain_cost(o)),
        free=("chain_length", "resampler", "betas", "kernel"),
        defaults=_LADDER,
    ),
)

FAMILY = (TEMPERED_SMC, WASTE_FREE_SMC)
