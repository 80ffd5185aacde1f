"""Attention of packed tokens in few calls: for devices on which a call costs more than some padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .packing import Segments

_MASK_ELEMENTS = 2**26
"""Bound on the entries of a call's mask, those of padding included."""


def worth_padding(query: Tensor) -> bool:
    """Whether calls cost more than padding: launching kernels for each segment would take a GPU longer than what they do."""
    return query.is_cuda


class Batch(NamedTuple):
    """Segments of similar size.

    :ivar rows: their rows in the slab; a slice where these follow one another.
    :ivar int stop: tokens that the longest lane holds.
    :ivar Tensor tokens: ``[A, q]`` where their tokens lie in the pass; a segment's last token again as padding.
    :ivar Tensor looking: ``[A, q]`` which row of the attention mask each token has.
    """

    rows: Tensor | slice
    stop: int
    tokens: Tensor
    looking: Tensor


def batches(segments: Segments) -> list[Batch]:
    """Segments in batches of which at most half is padding."""
    device = segments.positions.device
    waiting = sorted(segments.bounds, key=lambda bound: (bound[1] - bound[2], bound[0]))
    found = []
    while waiting:
        width, longest = waiting[0][2] - waiting[0][1], max(length for *_, length in waiting)
        most = max(1, _MASK_ELEMENTS // (width * longest))
        members = sorted(bound for bound in waiting[:most] if 2 * (bound[2] - bound[1]) >= width)
        waiting = waiting[len(members) :]
        first, begin, end, _ = torch.tensor(members, device=device).T
        column = torch.arange(width, device=device)
        tokens = torch.minimum(begin[:, None] + column, end[:, None] - 1)
        numbers = [row for row, *_ in members]
        whole = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        found.append(
            Batch(
                slice(numbers[0], numbers[0] + len(numbers)) if whole else first,
                max(length for *_, length in members),
                tokens,
                segments.positions[tokens] - segments.looking[0, 0],
            )
        )
    return found


def _of(segments: Segments) -> list[Batch]:
    """The same for all layers of a pass."""
    if segments.batches is None:
        segments.batches = batches(segments)
    return segments.batches


def attend_in_batches(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """Attention of packed tokens ``[1, heads, T, D]`` over the keys of their rows: ``[1, T, heads, D]``.

    :param Tensor key: ``[rows, kv_heads, capacity, D]``; ``value`` likewise.
    :param Tensor mask: ``[1, 1, R, S]``.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    output = query.new_empty(query.shape[2], heads, value.shape[-1])
    for batch in _of(segments):
        lanes, width = batch.tokens.shape
        asked = query[0][:, batch.tokens].transpose(0, 1).reshape(lanes, kv_heads, group * width, -1)
        keys, values = (store[batch.rows, :, : batch.stop] for store in (key, value))
        seen = mask[0, 0][batch.looking][:, None, :, : batch.stop]
        # The query heads of one key head are folded into the query length, see packed_sdpa.
        found = scaled_dot_product_attention(asked, keys, values, attn_mask=seen.repeat(1, 1, group, 1), scale=scaling)
        output[batch.tokens] = found.reshape(lanes, heads, width, -1).transpose(1, 2)  # padding gives what its token gives
    return output[None]
