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
    }
)

FAULTS: dict[str, str] = {}
"""Features that meet a fault of today's code, by its number or in words; a line is deleted when its fault is fixed."""

DEFAULT = FEATURES - FAULTS.keys()
