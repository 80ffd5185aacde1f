"""The cache entry of a local process reward model: the token ids of each sequence in the model's format, and the scores of their steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...context import PAD
from ...context_cache import CacheEntry
from ..score_cache import repeat_last
from .prefix_scorer import padded


def empty_entry(prompts: list[list[int]], problem: Tensor) -> CacheEntry:
    """Prompts alone, without any score.

    :param list prompts: token ids of each problem.
    :param Tensor problem: ``[*batch]``, the problem of each sequence, on the model's device.
    """
    device, batch_shape = problem.device, problem.shape
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[problem]
    tensors = {
        "ids": padded(prompts).to(device)[problem],
        "lengths": lengths,
        "prompt_lengths": lengths,
        "scores": torch.zeros(*batch_shape, 0, device=device),
        "rows": torch.full(batch_shape, -1, device=device),
        "scored": torch.zeros(*batch_shape, 0, dtype=torch.bool, device=device),
        "full": torch.zeros(batch_shape, dtype=torch.bool, device=device),
    }
    return CacheEntry(None, tensors)


def appended_ids(entry: CacheEntry, added: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The token ids of all sequences with more at their ends, ``[sequences, W]``, and their new lengths."""
    lengths = entry.tensors["lengths"].flatten()
    ids = entry.tensors["ids"].reshape(len(lengths), -1)
    extra = padded(added).to(ids.device)
    grown = lengths + (extra != PAD).sum(-1)
    width = int(grown.max())
    wide = torch.nn.functional.pad(ids, (0, max(0, width + 1 - ids.shape[1])), value=PAD)
    column = lengths[:, None] + torch.arange(extra.shape[1], device=ids.device)
    return wide.scatter(1, torch.where(extra == PAD, width, column), extra)[:, :width], grown


def with_scores(entry: CacheEntry, owner: Any, new: Tensor, own: Tensor, scored: Tensor, changed: dict[str, Tensor]) -> CacheEntry:
    """The entry with more scores ``new [sequences, K]``; steps without one of their ``own`` repeat the score before them.

    :param owner: of the new entry.
    :param Tensor scored: ``[sequences, K]``, the steps that were taken and have text.
    :param dict changed: other tensors of the entry, ``[sequences, ...]``.
    :raises ValueError: if a score is nan, naming step and sequence.
    """
    known = entry.tensors["scores"]
    shape = known.shape[:-1]
    scores = repeat_last(known.reshape(len(new), known.shape[-1]), new, own)
    scored = torch.cat([entry.tensors["scored"].reshape(len(new), known.shape[-1]), scored], -1)
    bad = scores.isnan().nonzero()
    if len(bad):
        sequence, step = bad[0].tolist()
        raise ValueError(
            f"the log-odds of step {step} of sequence {sequence} (flat, of sequences {tuple(shape)}) is nan: "
            "the reward model's weights or activations overflow; try dtype=torch.bfloat16 or torch.float32"
        )
    changed = {"scores": scores, "scored": scored, **changed}
    return CacheEntry(owner, entry.tensors | {name: t.view(shape + t.shape[1:]) for name, t in changed.items()})


def first_size(sizes: Tensor) -> Tensor:
    """``[A]`` the first positive entry of each row; of a row without one, any."""
    return sizes.gather(-1, (sizes > 0).int().argmax(-1, keepdim=True))[:, 0]
