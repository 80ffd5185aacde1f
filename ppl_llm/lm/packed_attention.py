"""Attention over grouped query heads without copying keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "ppl_llm_packed"
"""Name under which transformers knows :func:`packed_sdpa`."""


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which the query heads of one key head are folded into the query length.

    Repeating the keys for each query head, as the stock function does for masked inputs, costs several times the attention itself.

    :param Tensor query: ``[A, heads, q, D]``.
    :param Tensor key: ``[A, kv_heads, T, D]``; ``value`` likewise.
    :param Tensor attention_mask: ``[A, 1, q, T]``, shared by all heads; without one, causal where ``q == T``.
    :returns: ``[A, q, heads, D]`` and no weights.
    :raises ValueError: if the model asks for a feature that this function lacks.
    """
    for feature in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise ValueError(f"the attention of {type(module).__name__} uses {feature!r}, which is not supported yet")
    lanes, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if attention_mask is None:
        causal = length > 1 and length == key.shape[2]
        output = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling, enable_gqa=group > 1)
        return output.transpose(1, 2).contiguous(), None
    folded = query.reshape(lanes, kv_heads, group * length, -1)
    if length > 1 and group > 1:
        attention_mask = attention_mask.repeat(1, 1, group, 1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(lanes, heads, length, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, sdpa_mask)
