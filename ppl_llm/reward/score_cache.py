"""The scores of a context's steps, kept with the context so that none is computed twice."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..context import Context
from ..context_cache import CacheEntry, CacheKey, find_entry
from ..stop_reason import FINISHING, StopReason


class Drawn(Protocol):
    """What a reward has drawn at random and keeps, which a run that is resumed in another process needs."""

    def state(self) -> Any:
        """All of it, as plain values."""
        ...

    def adopt(self, state: Any) -> Drawn:
        """Itself, with what another one had drawn in place of its own."""
        ...


class ScoreCache:
    """Keeps scores ``[*batch, S]`` of the first S steps of contexts; resampling carries them along.

    :param str label: by which an entry that was stored in a file finds its reward again.
    :param Drawn drawn: goes with the scores into a file.
    """

    def __init__(self, label: str = "scores", drawn: Drawn | None = None) -> None:
        self._key, self._drawn = CacheKey(label), drawn

    def _found(self, context: Context) -> CacheEntry | None:
        return find_entry(context.cache_entries, self._key, lambda state: None if self._drawn is None else self._drawn.adopt(state))

    def get(self, context: Context) -> Tensor:
        """Scores of the steps that were scored before: ``[*batch, S]``, S from 0 to the number of steps."""
        entry = self._found(context)
        if entry is None or entry.tensors["scores"].shape[:-1] != context.batch_shape:
            return torch.zeros(*context.batch_shape, 0, device=context.tokens.device)
        return entry.tensors["scores"]

    def scored(self, context: Context) -> Tensor:
        """Which steps have scores of their own, ``[*batch, S]``, where that was kept."""
        entry = self._found(context)
        if entry is None or entry.tensors["scores"].shape[:-1] != context.batch_shape:
            return torch.zeros(*context.batch_shape, 0, dtype=torch.bool, device=context.tokens.device)
        return entry.tensors["scored"]

    def put(self, context: Context, scores: Tensor, name: str, scored: Tensor | None = None) -> Tensor:
        """Keep ``scores [*batch, T]`` and return them.

        :param Tensor scored: ``[*batch, T]``, the steps that have scores of their own, for rewards that do not score all steps.
        :param str name: of the reward model, for the error.
        :raises ValueError: if one of them is nan.
        """
        bad = scores.isnan().nonzero()
        if len(bad):
            *sequence, step = bad[0].tolist()
            raise ValueError(f"the log-odds that {name} gives to step {step} of sequence {tuple(sequence)} is nan")
        context.cache_entries[self._key] = CacheEntry(self._drawn, {"scores": scores} | ({} if scored is None else {"scored": scored}))
        return scores


def repeat_last(known: Tensor, new: Tensor, taken: Tensor) -> Tensor:
    """Scores of all steps ``[*batch, S + K]``; a step that has none of its own repeats the score before it.

    Before the first score it is inf, certainly right: the log-score of no step at all.

    :param Tensor known: ``[*batch, S]`` of earlier steps.
    :param Tensor new: ``[*batch, K]`` of later ones; arbitrary where there is none.
    :param Tensor taken: ``[*batch, K]``, the later steps that have a score of their own.
    """
    columns = list(known.unbind(-1))
    for score, real in zip(new.unbind(-1), taken.unbind(-1), strict=True):
        before = columns[-1] if columns else torch.full_like(score, torch.inf)
        columns.append(torch.where(real, score, before))
    return torch.stack(columns, -1) if columns else known


def done_at(context: Context) -> Tensor:
    """``[*batch, T]``: whether a sequence takes no step after each step, because it has finished by its end or was cut there."""
    return torch.isin(context.reasons, torch.tensor(FINISHING, device=context.reasons.device)).cumsum(-1) > 0


def finished_at(context: Context) -> Tensor:
    """``[*batch, T]``: whether a sequence had finished by the end of each step; never where it was cut for its length."""
    return done_at(context) & ~cut_at(context)


def cut_at(context: Context) -> Tensor:
    """``[*batch, T]``: whether a sequence was cut for its length by the end of each step."""
    return (context.reasons == StopReason.CONTEXT_FULL).cumsum(-1) > 0


def without_end(scores: Tensor, context: Context) -> Tensor:
    """Scores ``[*batch, T]`` where no step will follow: a solution that has not come to its end is certainly wrong."""
    last = torch.where(context.finished.to(scores.device), scores[..., -1], -torch.inf)
    return torch.cat([scores[..., :-1], last[..., None]], -1)
