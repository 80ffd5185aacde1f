"""Whether it pays to read what sequences have in common once for all of them, and how much that is."""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import KVCache

_MIN_SAVED = 1536
"""Columns that must be saved, over all sequences: below it the second call costs more than it saves (measured on a CPU)."""


def pays(device: torch.device, sequences: int, shared: int) -> bool:
    """Whether reading ``shared`` columns once for all sequences is faster. On accelerators kernels of their own do better."""
    return device.type == "cpu" and (sequences - 1) * shared >= _MIN_SAVED


def common_tokens(cache: KVCache, rows: int | Tensor, longest: int) -> int:
    """Leading tokens that rows share, as long as they only grow; 0 if it cannot pay to read their keys once.

    :param rows: ``[A]``, or a number for the first so many.
    :param int longest: bound on the tokens of any of them.
    """
    number, some = (rows, slice(rows)) if isinstance(rows, int) else (len(rows), rows)
    if not pays(cache.tokens.device, number, longest):
        return 0
    texts = cache.tokens[some, : int(cache.lengths[some].min())]
    shared = int((texts == texts[:1]).all(0).cumprod(0).sum())
    return shared if pays(cache.tokens.device, number, shared) else 0
