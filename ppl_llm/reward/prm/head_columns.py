"""Which hidden states a head is applied to."""

from __future__ import annotations

from typing import Any


def head_columns(hidden: Any, logits_to_keep: int | list[int]) -> Any:
    """Those of the last so many columns of ``[B, L, h]``, all for 0, or of given columns; as transformers' language models have it."""
    return hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
