"""What a random program may have, and which of it meets a fault of the code."""

from __future__ import annotations

FEATURES = frozenset(
    {
        "second latent",
        "shared latent",
        "shared factor",
        "factor before the first barrier",
        "factor after the last barrier",
        "prefix-dependent score",
        "observed",
        "padded ends",
        "fn.mask ends",
        "poutine.mask ends",
        "scaled score",
        "scaled latent",
        "zero factor",
        "deterministic site",
        "dict state",
        "nested state",
        "list state",
        "object state",
        "state object without batch_shape",
        "barriers every second step",
        "no last barrier",
        "problems",
        "elements",
        "proposals",
        "proposals of masked sites",
        "condition",
        "replay",
        "replay of scaled sites",
        "replay of sites without parents",
        "block",
        "reused name",
        "shared factor after resampling",
        "subsample of problems",
        "gaussian",
        "gaussian parameter",
        "gaussian shared parameter",
        "gaussian positive parameter",
        # of cells: what is run on a program, not what is in it
        "ancestor sampling of masked sites",
        "enumeration of masked sites",
        "populations that may die",
        "replayed sites under chains and enumeration",
    }
)

FAULTS = {
    "reused name": "A2",
    "ancestor sampling of masked sites": "A5",
    "proposals of masked sites": "A6",
    "enumeration of masked sites": "A7",
    "subsample of problems": "A8",
    "populations that may die": "A9",
    "block": "A12",
    "deterministic site": "A13",
    "replay of scaled sites": "weighed by p^(s - 1), or refused for its shape",
    "replay of sites without parents": "Pyro leaves their batch shape: islands give an IndexError",
    "replayed sites under chains and enumeration": "Enumeration draws them all the same; particle Gibbs: RuntimeError on their shape",
    "state object without batch_shape": "islands: the error of a failed run is lost in an AttributeError",
}
"""Features that meet a fault of today's code, by its number or in words; a line is deleted when its fault is fixed."""

DEFAULT = FEATURES - FAULTS.keys()
