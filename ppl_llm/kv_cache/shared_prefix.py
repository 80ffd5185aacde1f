"""Attention of single tokens of many lanes whose texts begin alike: the common keys are read once for all lanes."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_SAVED = 1536
"""Columns that must be saved, over all lanes: below it the second call costs more than it saves (measured on a CPU)."""


def pays(device: torch.device, lanes: int, shared: int) -> bool:
    """Whether reading ``shared`` columns once for all lanes is faster. On accelerators kernels of their own do better."""
    return device.type == "cpu" and (lanes - 1) * shared >= _MIN_SAVED


def shared_prefix_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shared: int, scaling: float | None) -> Tensor:
    """Attention over the common columns and over the others, joined by their normalisers.

    With sums Z_1 and Z_2 of exponentiated scores over the two parts, softmax attention is the mean of the parts' results with weights
    Z_1 and Z_2 (Juravsky et al., Hydragen, 2024).

    :param Tensor query: ``[A, kv_heads, group, D]``, the query heads of one key head.
    :param Tensor key: ``[A, kv_heads, T, D]``; ``value`` likewise.
    :param Tensor mask: ``[A, 1, 1, T]`` bool; each lane sees all of the common columns and one more at least.
    :param int shared: columns in which all lanes have the same keys and values.
    :returns: ``[A, kv_heads, group, D]``.
    """
    lanes, kv_heads, group, _ = query.shape
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the only one that tells log Z
    everyone = query.transpose(0, 1).reshape(1, kv_heads, lanes * group, -1)
    common, log_common = attention(everyone, key[:1, :, :shared], value[:1, :, :shared], scale=scaling)
    bias = torch.where(mask[..., shared:], 0.0, -torch.inf).to(query.dtype)
    own, log_own = attention(query, key[:, :, shared:], value[:, :, shared:], attn_mask=bias, scale=scaling)
    common = common.view(kv_heads, lanes, group, -1).transpose(0, 1)
    share = torch.sigmoid(log_common.view(kv_heads, lanes, group).transpose(0, 1) - log_own)
    return torch.lerp(own, common, share[..., None].to(own.dtype))
