"""Number formats of weights, by name."""

from __future__ import annotations

import torch

from ..inference.util.validation import unknown_name

DTYPES = ("float32", "bfloat16", "float16")


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of this name; ``None``, that of the checkpoint, stays.

    :raises ValueError: for an unknown name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    dtype: torch.dtype = getattr(torch, name)
    return dtype
