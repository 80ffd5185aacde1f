"""Attention over grouped query heads without copying keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .block_layer import BlockReads
from .joint_append import PackedParts
from .joint_pass import Parts
from .packing import Segments

PACKED = "ppl_llm_packed"
"""Name under which transformers knows :func:`packed_sdpa`."""


class Keys(Protocol):
    """Keys and values of the sequences of a forward pass, wherever they lie."""

    def common(self, shared: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, kv_heads, shared, D]`` of columns that all sequences have in common."""
        ...

    def parts(self, start: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some sequences after others, and their keys and values ``[a, kv_heads, T - start, D]`` from column ``start`` on, which are valid
        until the next ones are asked for."""
        ...

    def of(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[kv_heads, stop - start, D]`` of a row of the KV cache."""
        ...


class RowKeys(NamedTuple):
    """Keys and values ``[A, kv_heads, T, D]``."""

    key: Tensor
    value: Tensor

    def common(self, shared: int) -> tuple[Tensor, Tensor]:
        return self.key[:1, :, :shared], self.value[:1, :, :shared]

    def parts(self, start: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        yield slice(None), self.key[:, :, start:], self.value[:, :, start:]

    def of(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.key[row, :, start:stop], self.value[row, :, start:stop]


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Segments | None = None,
    shared: int = 0,
    parts: Parts | PackedParts | None = None,
    blocks: BlockReads | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which the query heads of one key head are folded into the query length.

    Repeating the keys for each query head, as the stock function does for masked inputs, costs several times the attention itself.

    :param Tensor query: ``[A, heads, q, D]``.
    :param Tensor key: ``[A, kv_heads, T, D]``; ``value`` likewise.
    :param Tensor attention_mask: ``[A, 1, q, T]`` bool, shared by all heads; without one, causal where ``q == T``.
    :param float softcap: c of the scores c tanh(s / c) (Gemma 2).
    :param Tensor s_aux: ``[heads]``, the score of a further place without a value that takes its share of each softmax (gpt-oss).
    :param Segments segments: of packed tokens: ``A`` is 1, keys are those of all rows of a cache, and the mask is theirs.
    :param int shared: leading columns in which all sequences have the same keys; of use for packed tokens, and where ``q`` is 1.
    :param Parts parts: of sequences in several KV caches: keys and values are only the new ones. Each knows what its sequences share,
        unless ``shared`` is 0.
    :param BlockReads blocks: finds all keys and values of sequences in blocks; ``key`` and ``value`` are only the new ones.
    :returns: ``[A, q, heads, D]`` and no weights.
    :raises ValueError: if the model asks for a feature that this function lacks, or keeps ``segments`` from it.
    """
    if kwargs.get("position_bias") is not None:
        raise ValueError(f"the attention of {type(module).__name__} uses 'position_bias', which is not supported")
    if parts is not None and attention_mask is not None:

        def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **own: Any) -> Tensor:
            own = own if shared else {name: value for name, value in own.items() if name != "shared"}
            return packed_sdpa(module, query, key, value, mask, dropout, scaling, is_causal, softcap, s_aux, **own)[0]

        return parts.attend(attention, query, key, attention_mask), None
    padding = blocks is None and softcap is None and s_aux is None and worth_padding(query)
    if segments is not None and attention_mask is not None and padding:
        return attend_in_batches(query, key, value, attention_mask, segments, scaling), None
    shared = shared if key.shape[-1] == value.shape[-1] else 0  # which the function that tells log Z wants
    keys: Keys = RowKeys(key, value) if blocks is None else blocks.keys(key)
    if segments is not None and attention_mask is not None:
        return _each_segment(query, keys, key.shape[1], attention_mask, segments, scaling, softcap, s_aux, shared), None
    sequences, heads, length, _ = query.shape
    if key.shape[0] != sequences:
        raise ValueError(f"{type(module).__name__} does not hand to its attention function what belongs to packed tokens")
    special = softcap is not None or s_aux is not None
    if special and attention_mask is None:
        attention_mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - length)[None, None]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if attention_mask is None:
        causal = length > 1 and length == key.shape[2]
        output = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling, enable_gqa=group > 1)
        return output.transpose(1, 2).contiguous(), None
    folded = query.reshape(sequences, kv_heads, group * length, -1)
    if length > 1 and group > 1:
        attention_mask = attention_mask.repeat(1, 1, group, 1)
    if special:
        sinks = None if s_aux is None else s_aux.view(kv_heads, group, 1).repeat(1, 1, length).view(1, kv_heads, -1, 1)
        found = [_plain(folded[some], own, of, attention_mask[some], scaling, softcap, sinks) for some, own, of in keys.parts(0)]
        output = torch.cat(found)
    elif shared and length == 1:
        output = shared_prefix_attention(folded, keys, attention_mask, shared, scaling)
    else:
        output = torch.cat(
            [
                scaled_dot_product_attention(folded[some], own, of, attn_mask=attention_mask[some], scale=scaling)
                for some, own, of in keys.parts(0)
            ]
        )
    return output.reshape(sequences, heads, length, -1).transpose(1, 2).contiguous(), None


def _each_segment(
    query: Tensor,
    keys: Keys,
    kv_heads: int,
    mask: Tensor,
    segments: Segments,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    shared: int = 0,
) -> Tensor:
    """One sequence after the other, each on a view of the keys that it holds: ``[1, T, heads, D]``.

    On a CPU the calls cost little beside the padding that they save: measured with 64 sequences, a third of the time of a padded batch.
    """
    group = query.shape[1] // kv_heads
    queries = query[0].unflatten(0, (kv_heads, group))
    sinks = None if s_aux is None else s_aux.view(kv_heads, group, 1, 1)
    shared = 0 if softcap is not None or sinks is not None else shared
    found, logs = [], []
    for row, begin, end, length in segments.bounds:
        asked = queries[:, :, begin:end]
        key, value = (store[:, None].expand(-1, group, -1, -1) for store in keys.of(row, shared, length))
        seen = segments.seen(mask, begin, end, length)[..., shared:]
        if softcap is not None or sinks is not None:
            found.append(_plain(asked, key, value, seen, scaling, softcap, sinks))
        elif shared:
            bias = torch.where(seen, 0.0, -torch.inf).to(query.dtype)
            own, log_own = _with_log(asked, key, value, attn_mask=bias, scale=scaling)
            found.append(own)
            logs.append(log_own)
        else:
            found.append(scaled_dot_product_attention(asked, key, value, attn_mask=seen, scale=scaling))
    output = torch.cat(found, 2)
    if shared:
        common, log_common = _with_log(
            queries.flatten(1, 2)[None], *(each[None] for each in keys.of(segments.bounds[0][0], 0, shared)), scale=scaling
        )
        output = _joined(common.view(output.shape), log_common.view(output.shape[:-1]), output, torch.cat(logs, 2))
    return output.flatten(0, 1).transpose(0, 1)[None]


def _with_log(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum Z of its exponentiated scores."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, **options)
    return found


def _joined(one: Tensor, log_one: Tensor, other: Tensor, log_other: Tensor) -> Tensor:
    """Attention over two sets of columns from that over each of them and their logarithms of Z.

    Softmax attention is the mean of the parts' results with weights Z (Juravsky et al., Hydragen, 2024).
    """
    return torch.lerp(other, one, torch.sigmoid(log_one - log_other)[..., None].to(other.dtype))


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention with capped scores or sinks ``[..., 1]``, which the fused function does not know."""
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).float()
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def worth_padding(query: Tensor) -> bool:
    """Whether calls cost more than padding: launching kernels for each segment would take a GPU longer than what they do."""
    return query.is_cuda


def attend_in_batches(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """Attention of packed tokens ``[1, heads, T, D]`` over the keys of their rows: ``[1, T, heads, D]``.

    :param Tensor key: ``[rows, kv_heads, capacity, D]``; ``value`` likewise.
    :param Tensor mask: ``[1, 1, R, S]``.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    output = query.new_empty(query.shape[2], heads, value.shape[-1])
    for batch in segments.batches:
        sequences, width = batch.tokens.shape
        asked = query[0][:, batch.tokens].transpose(0, 1).reshape(sequences, kv_heads, group * width, -1)
        keys, values = (store[batch.rows, :, : batch.stop] for store in (key, value))
        seen = mask[0, 0][batch.looking][:, None, :, : batch.stop]
        # The query heads of one key head are folded into the query length, see packed_sdpa.
        found = scaled_dot_product_attention(asked, keys, values, attn_mask=seen.repeat(1, 1, group, 1), scale=scaling)
        output[batch.tokens] = found.reshape(sequences, heads, width, -1).transpose(1, 2)  # padding gives what its token gives
    return output[None]


def shared_prefix_attention(query: Tensor, keys: Keys, mask: Tensor, shared: int, scaling: float | None) -> Tensor:
    """Attention over the common columns and over the others, joined by their normalisers.

    :param Tensor query: ``[A, kv_heads, group, D]``, the query heads of one key head.
    :param Tensor mask: ``[A, 1, 1, T]`` bool; each sequence sees all of the common columns and one more at least.
    :param int shared: columns in which all sequences have the same keys and values.
    :returns: ``[A, kv_heads, group, D]``.
    """
    sequences, kv_heads, group, _ = query.shape
    everyone = query.transpose(0, 1).reshape(1, kv_heads, sequences * group, -1)
    common, log_common = _with_log(everyone, *keys.common(shared), scale=scaling)
    common = common.view(kv_heads, sequences, group, -1).transpose(0, 1)
    log_common = log_common.view(kv_heads, sequences, group).transpose(0, 1)
    bias = torch.where(mask[..., shared:], 0.0, -torch.inf).to(query.dtype)
    each = [_with_log(query[some], key, value, attn_mask=bias[some], scale=scaling) for some, key, value in keys.parts(shared)]
    own, log_own = (torch.cat(found) for found in zip(*each, strict=True))
    return _joined(common, log_common, own, log_own)


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, sdpa_mask)
