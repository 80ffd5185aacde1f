"""Markov chains over solutions."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run, chain, moves, scheme
from .filters import MOVES_COST
from .options import (
    ANCESTOR_SAMPLING,
    BETAS,
    ESS_THRESHOLD,
    ITERATIONS,
    KERNEL,
    MOVES,
    PARTICLES,
    PILOT,
    REFERENCES,
    RESAMPLER,
    SWEEPS,
    WALK_STEPS,
    WARMUP,
    parse_betas,
)

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel

MOVE_COST = {"suffix-mh": Fraction(1, 2), "particle-gibbs": Fraction(3)}
"""Complete solutions that a move of a kernel writes: half a solution on average, and three particles besides the reference."""


def _nesting(call: Call) -> dict[str, Any]:
    return {"max_plate_nesting": call.max_plate_nesting} | ({} if call.proposals is None else {"proposals": call.proposals})


def _particle_gibbs(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    options = {"ancestor_sampling": o["ancestor_sampling"], "num_references": o["references"], **scheme(o)}
    return chain(kernel(model, o["particles"], **options, **_nesting(call)), o, call)


def _pimh(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return chain(kernel(model, o["particles"], **scheme(o), **_nesting(call)), o, call)


def _suffix_mh(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return chain(kernel(model, **_nesting(call)), o, call)


def _power_mh(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return chain(kernel(model, moves=o["moves"], **_nesting(call)), o, call)


def _prefix_walk(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return chain(kernel(model, steps=o["walk_steps"], pilot=o["pilot"], **_nesting(call)), o, call)


def _parallel_tempering(kernel: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return chain(kernel(model, parse_betas(o["betas"]), moves(o["kernel"]), **_nesting(call)), o, call)


def _after_warmup(iterations: int) -> dict[str, int]:
    """A quarter of the iterations is left out."""
    return {"iterations": iterations - iterations // 4, "warmup": iterations // 4}


def _gibbs_sizes(budget: int, o: Options) -> dict[str, Any]:
    # The first filter writes N solutions, the others N - 1: their reference costs nothing.
    return {"particles": -(-budget // o["sweeps"]), "iterations": o["sweeps"] - 1}


def _walk_sizes(budget: int, o: Options) -> dict[str, Any]:
    # A first solution, and in each of 3 iterations a pilot and half a reasoning step for each step of the walk, a quarter of a solution.
    pilot = max(1, budget // 12)
    return {"walk_steps": max(1, 4 * (budget - 1 - 3 * pilot) // 3), "pilot": pilot, "iterations": 2, "warmup": 1}


def _replicas(o: Options) -> int:
    return len(o["betas"].split(","))


def _tempering_sizes(budget: int, o: Options) -> dict[str, Any]:
    # Each of the K replicas begins with a solution and is moved once an iteration: K (1 + cost * iterations) = B.
    replicas = _replicas(o)
    return _after_warmup(max(1, int((budget - replicas) / (replicas * MOVE_COST[o["kernel"]]))))


PARTICLE_GIBBS = Method(
    "particle-gibbs",
    "ParticleGibbs",
    "chain of particle filters, each around a solution that the one before drew",
    (PARTICLES, RESAMPLER, ESS_THRESHOLD, ITERATIONS, WARMUP, ANCESTOR_SAMPLING, REFERENCES),
    _particle_gibbs,
    "iteration",
    Budget(
        "filters of B / sweeps particles",
        "posterior",
        _gibbs_sizes,
        lambda o: 2 * int(o["sweeps"]),
        free=("resampler", "ess_threshold", "ancestor_sampling"),
        extra=(SWEEPS,),
        defaults={"resampler": "multinomial", "ess_threshold": 0.5},
    ),
    tempers=True,
)

PIMH = Method(
    "pimh",
    "PIMH",
    "chain of independent particle filters, each accepted by its evidence",
    (PARTICLES, RESAMPLER, ESS_THRESHOLD, ITERATIONS, WARMUP),
    _pimh,
    "iteration",
    Budget(
        "filters of B / sweeps particles",
        "posterior",
        lambda budget, o: {"particles": budget // o["sweeps"], "iterations": o["sweeps"] - 1},
        lambda o: int(o["sweeps"]),
        free=("resampler", "ess_threshold"),
        extra=(SWEEPS,),
    ),
    tempers=True,
)

SUFFIX_MH = Method(
    "suffix-mh",
    "SuffixMH",
    "chain that rewrites the end of a solution and accepts by the scores",
    (ITERATIONS.by_default(40), WARMUP.by_default(10)),
    _suffix_mh,
    "iteration",
    Budget(
        "2 (B - 1) iterations of half a solution each, a quarter of them warm-up",
        "posterior",
        lambda budget, o: _after_warmup(2 * (budget - 1)),
        lambda o: 2,
    ),
    tempers=True,
)

POWER_MH = Method(
    "power-mh",
    "BlockMH",
    "chain for p(solution)^4: rewrites ends of solutions, grown with moves; needs no scores",
    (MOVES.by_default(1), ITERATIONS.by_default(40), WARMUP.by_default(10)),
    _power_mh,
    "iteration",
    Budget(
        "2 (B - 1 - 5/4 moves) iterations of half a solution each, a quarter of them warm-up",
        "posterior",
        lambda budget, o: _after_warmup(int(2 * (budget - 1 - MOVES_COST * o["moves"]))),
        lambda o: int(-(-(Fraction(3, 2) + MOVES_COST * o["moves"]) // 1)),
        free=("moves",),
    ),
    power=4.0,
    tempers=True,
)

PREFIX_WALK = Method(
    "prefix-walk",
    "PrefixWalk",
    "chain that writes a step or takes one back, led by the scores of beginnings",
    (WALK_STEPS, PILOT, ITERATIONS, WARMUP.by_default(1)),
    _prefix_walk,
    "iteration",
    Budget(
        "3 iterations, one of them warm-up, of a quarter of a solution for each step of the walk; a quarter of B sets the scale",
        "posterior",
        _walk_sizes,
        lambda o: 8,
    ),
)

PARALLEL_TEMPERING = Method(
    "parallel-tempering",
    "ParallelTempering",
    "chains at several powers of the scores that swap their solutions",
    (BETAS.by_default("0,0.3,1"), KERNEL, ITERATIONS.by_default(40), WARMUP.by_default(10)),
    _parallel_tempering,
    "iteration",
    Budget(
        "iterations as B allows, a quarter of them warm-up",
        "posterior",
        _tempering_sizes,
        _replicas,
        free=("betas", "kernel"),
        defaults={"betas": "0,0.25,1"},
    ),
)

FAMILY = (PARTICLE_GIBBS, PIMH, SUFFIX_MH, POWER_MH, PREFIX_WALK, PARALLEL_TEMPERING)
