"""The scores of a context's steps, noted on the context so that none is computed twice."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import Context, StopReason
from ..context_cache import CacheEntry, CacheKey, find_entry


class ScoreMemo:
    """Remembers scores ``[*batch, S]`` of the first S steps of contexts; resampling carries them along."""

    def __init__(self) -> None:
        self._key = CacheKey("scores")

    def known(self, context: Context) -> Tensor:
        """Scores of the steps that were scored before: ``[*batch, S]``, S from 0 to the number of steps."""
        memo = find_entry(context.cache_entries, self._key, lambda owner: None)
        if memo is None or memo.tensors["scores"].shape[:-1] != context.batch_shape:
            return torch.zeros(*context.batch_shape, 0, device=context.tokens.device)
        return memo.tensors["scores"]

    def note(self, context: Context, scores: Tensor, name: str) -> Tensor:
        """Remember ``scores [*batch, T]`` and give them back.

        :param str name: who scored, for the error.
        :raises ValueError: if one of them is nan.
        """
        bad = scores.isnan().nonzero()
        if len(bad):
            *lane, step = bad[0].tolist()
            raise ValueError(f"the log-odds that {name} gives to step {step} of lane {tuple(lane)} is nan")
        context.cache_entries[self._key] = CacheEntry(None, {"scores": scores})
        return scores


def finished_at(context: Context) -> Tensor:
    """``[*batch, T]``: whether a lane had finished by the end of each step."""
    finishing = torch.tensor([StopReason.END_OF_TEXT, StopReason.CONTEXT_FULL, StopReason.PATTERN], device=context.reasons.device)
    return torch.isin(context.reasons, finishing).cumsum(-1) > 0
