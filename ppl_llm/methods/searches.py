"""Tree searches: they choose and have no posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .options import (
    ALLOCATION_TEMPERATURE,
    BEAM_WIDTH,
    CONTINUATIONS,
    DIVERSITY_TEMPERATURE,
    EXPAND,
    EXPLORATION,
    FILTER_DUPLICATES,
    KEEP,
    LOOKAHEAD,
    MARK_UNIT,
    MARKS,
    MAX_TOKENS_TOTAL,
    PARTICLES,
    SCORE_POSTERIOR,
    SIMULATION_BATCH,
    SIMULATIONS,
    SUBTREES,
    VALUE,
    WIDENING,
    WIDENING_POWER,
    parse_marks,
)

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


_SELECTION = ("filter_duplicates", "lookahead")


def _wide(o: Options) -> int:
    """Solutions' worth of steps of one that is kept: its continuations, each with as many more steps as it looks ahead."""
    return int(o["expand"]) * (1 + int(o["lookahead"]))


def _beam_search(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {name: o[name] for name in _SELECTION}
    return call.run_of(search(model, o["beam_width"], o["expand"], **keywords, **call.keywords()))


def _dvts(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {name: o[name] for name in _SELECTION}
    return call.run_of(search(model, o["subtrees"], o["expand"], **keywords, **call.keywords()))


def _rebase(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    return call.run_of(search(model, o["particles"], temperature=o["allocation_temperature"], **call.keywords()))


def _dora(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {"temperature": o["allocation_temperature"], "diversity_temperature": o["diversity_temperature"]}
    return call.run_of(search(model, o["particles"], **keywords, **call.keywords()))


def _best_first(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    limit = o["max_tokens_total"]
    return call.run_of(search(model, expand=o["expand"], budget=o["continuations"], max_tokens_total=limit, **call.keywords()))


def _speculative_rejection(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {"keep": o["keep"], "marks": parse_marks(o["marks"]), "unit": o["mark_unit"]}
    return call.run_of(search(model, o["particles"], **keywords, **call.keywords()))


_SIMULATION = ("value", "max_tokens_total")
_UCT = ("exploration", "widening", "widening_power")


def _mcts(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {name: o[name] for name in (*_UCT, *_SIMULATION)}
    return call.run_of(search(model, o["simulations"], o["simulation_batch"], **keywords, **call.keywords()))


def _ab_mcts(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    keywords = {"posterior": o["score_posterior"], **{name: o[name] for name in _SIMULATION}}
    return call.run_of(search(model, o["simulations"], o["simulation_batch"], **keywords, **call.keywords()))


def _simulations(budget: int, o: Options) -> dict[str, int]:
    """Steps of B solutions of 4 steps, or B / 2 rollouts, of which half the steps are known on average."""
    return {"simulations": 4 * budget if o["value"] == "prefix" else max(1, 2 * budget)}


BEAM_SEARCH = Method(
    "beam-search",
    "BeamSearch",
    "keeps the best beams at every step and copies them; no posterior",
    (BEAM_WIDTH, EXPAND, FILTER_DUPLICATES, LOOKAHEAD),
    _beam_search,
    budget=Budget(
        "B / expand beams, fewer with a look ahead",
        "weighted",
        lambda budget, o: {"beam_width": budget // _wide(o)},
        _wide,
        free=("expand", *_SELECTION),
    ),
)

DVTS = Method(
    "dvts",
    "DVTS",
    "independent greedy searches, each step the best of several; no posterior",
    (SUBTREES, EXPAND, FILTER_DUPLICATES, LOOKAHEAD),
    _dvts,
    budget=Budget(
        "B / expand subtrees, fewer with a look ahead",
        "weighted",
        lambda budget, o: {"subtrees": budget // _wide(o)},
        _wide,
        free=("expand", *_SELECTION),
    ),
)

REBASE = Method(
    "rebase",
    "REBASE",
    "continues good beginnings in numbers that grow with their scores; no posterior",
    (PARTICLES, ALLOCATION_TEMPERATURE),
    _rebase,
    budget=Budget("B particles", "weighted", free=("allocation_temperature",)),
)

DORA = Method(
    "dora",
    "DORA",
    "as rebase, with fewer continuations for beginnings that go the same way; no posterior",
    (PARTICLES, ALLOCATION_TEMPERATURE, DIVERSITY_TEMPERATURE),
    _dora,
    budget=Budget("B particles", "weighted", free=("allocation_temperature", "diversity_temperature")),
    embeds=True,
)

BEST_FIRST = Method(
    "best-first",
    "BestFirst",
    "continues the best beginning of all, wherever in the tree it is; no posterior",
    (EXPAND, CONTINUATIONS, MAX_TOKENS_TOTAL),
    _best_first,
    budget=Budget(
        "4 B steps, as many as B solutions of 4 steps have",
        "best-of-n",
        lambda budget, o: {"continuations": 4 * budget},
        lambda o: -(-int(o["expand"]) // 4),
        free=("expand",),
    ),
)

MCTS = Method(
    "mcts",
    "MCTS",
    "Monte Carlo tree search: beginnings by mean score and number of visits; no posterior",
    (SIMULATIONS, SIMULATION_BATCH, EXPLORATION, WIDENING, WIDENING_POWER, VALUE, MAX_TOKENS_TOTAL),
    _mcts,
    budget=Budget(
        "4 B steps, as many as B solutions of 4 steps have; 2 B rollouts",
        "best-of-n",
        _simulations,
        free=("simulation_batch", *_UCT, "value"),
    ),
)

AB_MCTS = Method(
    "ab-mcts",
    "ABMCTS",
    "adaptive branching tree search: draws whether wider or deeper is better; no posterior",
    (SIMULATIONS, SIMULATION_BATCH, SCORE_POSTERIOR, VALUE, MAX_TOKENS_TOTAL),
    _ab_mcts,
    budget=Budget(
        "4 B steps, as many as B solutions of 4 steps have; 2 B rollouts",
        "best-of-n",
        _simulations,
        free=("simulation_batch", "score_posterior", "value"),
    ),
)

SPECULATIVE_REJECTION = Method(
    "speculative-rejection",
    "SpeculativeRejection",
    "drops solutions with low scores while they are written, and takes the best; no posterior",
    (PARTICLES, KEEP, MARKS, MARK_UNIT),
    _speculative_rejection,
    budget=Budget(
        "2 B particles, as half of them are dropped after 1, 2, 4, .. steps",
        "best-of-n",
        lambda budget, o: {"particles": 2 * budget},
        free=("keep", "marks", "mark_unit"),
    ),
)

FAMILY = (BEAM_SEARCH, DVTS, REBASE, DORA, BEST_FIRST, MCTS, AB_MCTS, SPECULATIVE_REJECTION)
