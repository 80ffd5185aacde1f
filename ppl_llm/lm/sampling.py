"""Tokens from logits: warping and inverse-CDF sampling, one uniform per lane and token."""

from __future__ import annotations

import torch
from torch import Tensor

from .protocol import StepOptions

_BLOCK = 512


def warp(logits: Tensor, options: StepOptions) -> Tensor:
    """Logits ``[..., V]`` after temperature, then top-k, then top-p; removed tokens are -inf. float32."""
    logits = logits.float()
    if options.temperature != 1.0:
        logits = logits / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        threshold = logits.topk(options.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if options.top_p < 1.0:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        # A token stays if the mass before it is below top_p: the smallest set that reaches top_p, never empty.
        removed = probs.cumsum(-1) - probs >= options.top_p
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def inverse_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``[A]`` and their log-probabilities from logits ``[A, V]`` and uniforms ``[A]`` in [0, 1).

    Two levels (blocks, then tokens of one block) keep the cumulative sums short and precise for large vocabularies. A token of zero
    probability is never returned, whatever the rounding.
    """
    top = logits.amax(-1, keepdim=True)
    mass = (logits - top).exp_()
    if mass.shape[-1] <= 2 * _BLOCK:
        cdf = mass.cumsum(-1, dtype=torch.float64)
        token = _search(cdf, u * cdf[:, -1])
        total = cdf[:, -1]
    else:
        blocks = torch.nn.functional.pad(mass, (0, -mass.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
        outer = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
        total = outer[:, -1]
        target = u * total
        block = _search(outer, target)
        chosen = blocks[torch.arange(len(block), device=block.device), block]
        inner = chosen.cumsum(-1, dtype=torch.float64)
        before = outer.gather(-1, block[:, None])[:, 0] - inner[:, -1]
        token = block * _BLOCK + _search(inner, target - before)
    log_prob = logits.gather(-1, token[:, None])[:, 0] - top[:, 0] - total.log().to(logits.dtype)
    return token, log_prob


def _search(cdf: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative mass exceeds the target, at most the last one of positive mass."""
    index = torch.searchsorted(cdf, target.to(cdf.dtype)[:, None], right=True)[:, 0]
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())[:, 0]
    first = torch.searchsorted(cdf, torch.zeros_like(cdf[:, :1]), right=True)[:, 0]
    return torch.minimum(torch.maximum(index, first), last)
