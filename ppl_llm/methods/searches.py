"""Tree searches: they choose and have no posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Budget, Call, Method, Options, Run
from .options import BEAM_WIDTH, EXPAND, SUBTREES

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel


def _beam_search(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, o["beam_width"], o["expand"], **call.keywords()).run
    return run


def _dvts(search: Any, model: ReasoningModel, o: Options, call: Call) -> Run:
    run: Run = search(model, o["subtrees"], o["expand"], **call.keywords()).run
    return run


BEAM_SEARCH = Method(
    "beam-search",
    "BeamSearch",
    "keeps the best beams at every step and copies them; no posterior",
    (BEAM_WIDTH, EXPAND),
    _beam_search,
    budget=Budget(
        "B / expand beams",
        "weighted",
        lambda budget, o: {"beam_width": budget // o["expand"]},
        lambda o: int(o["expand"]),
        free=("expand",),
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

FAMILY = (BEAM_SEARCH, DVTS)
