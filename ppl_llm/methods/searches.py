"""Tree searches: they choose and have no posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .options import ALLOCATION_TEMPERATURE, BEAM_WIDTH, CONTINUATIONS, EXPAND, FILTER_DUPLICATES, PARTICLES, SUBTREES

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _beam_search(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, o["beam_width"], o["expand"], filter_duplicates=o["filter_duplicates"], **call.keywords()).run
    return run


def _dvts(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, o["subtrees"], o["expand"], **call.keywords()).run
    return run


def _rebase(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, o["particles"], temperature=o["allocation_temperature"], **call.keywords()).run
    return run


def _best_first(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, expand=o["expand"], budget=o["continuations"], **call.keywords()).run
    return run


BEAM_SEARCH = Method(
    "beam-search",
    "BeamSearch",
    "keeps the best beams at every step and copies them; no posterior",
    (BEAM_WIDTH, EXPAND, FILTER_DUPLICATES),
    _beam_search,
    budget=Budget(
        "B / expand beams",
        "weighted",
        lambda budget, o: {"beam_width": budget // o["expand"]},
        lambda o: int(o["expand"]),
        free=("expand", "filter_duplicates"),
    ),
)

DVTS = Method(
    "dvts",
    "DVTS",
    "independent greedy searches, each step the best of several; no posterior",
    (SUBTREES, EXPAND),
    _dvts,
    budget=Budget(
        "B / expand subtrees",
        "weighted",
        lambda budget, o: {"subtrees": budget // o["expand"]},
        lambda o: int(o["expand"]),
        free=("expand",),
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

BEST_FIRST = Method(
    "best-first",
    "BestFirst",
    "continues the best beginning of all, wherever in the tree it is; no posterior",
    (EXPAND, CONTINUATIONS),
    _best_first,
    budget=Budget(
        "4 B steps, as many as B solutions of 4 steps have",
        "best-of-n",
        lambda budget, o: {"continuations": 4 * budget},
        lambda o: -(-int(o["expand"]) // 4),
        free=("expand",),
    ),
)

FAMILY = (BEAM_SEARCH, DVTS, REBASE, BEST_FIRST)
