"""Tokens from logits: warping and inverse-CDF sampling, one uniform per sequence and token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from ..base import StepOptions
from ..token_figures import TokenFigure
from .decoder import DecodeRequest, Draw

_BLOCK = 256
"""Tokens whose mass is summed in float32."""

_ONE_LEVEL = 1024
"""Vocabularies up to this size are faster without blocks."""

_IN_CACHE = 2**20
"""Logits looked at together on a CPU: several passes over 4 MiB, which stay in a core's caches, cost half of what they do over 20 MiB, and
memory for them is not asked of the system each time."""


def warp(logits: Tensor, options: StepOptions) -> Tensor:
    """Logits ``[..., V]`` after temperature, then top-k, then top-p; removed tokens are -inf. float32, or float64 as given."""
    given = logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if options.temperature != 1.0:
        logits = logits / options.temperature if logits is given else logits.div_(options.temperature)
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        threshold = logits.topk(options.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if options.top_p < 1.0:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        # A token stays if the mass before it is below top_p: the smallest set that reaches top_p, never empty.
        removed = probs.cumsum(-1) - probs >= max(options.top_p, torch.finfo(probs.dtype).tiny)  # it must not be rounded to 0
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def tempered(logits: Tensor, temperatures: Tensor | None) -> Tensor:
    """Logits ``[A, ..., V]`` divided by the temperature ``[A]`` of each sequence, where there are any."""
    if temperatures is None:
        return logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits / temperatures.to(logits.dtype).view(-1, *(1,) * (logits.dim() - 1))


def rows_in_cache(logits: Tensor) -> int:
    """How many of the rows of logits ``[A, V]`` to draw from at a time."""
    return max(1, _IN_CACHE // logits.shape[-1] if logits.device.type == "cpu" else len(logits))


def draw(
    logits: Tensor, u: Tensor, options: StepOptions, figures: tuple[TokenFigure, ...] = (), temperatures: Tensor | None = None
) -> Draw:
    """Tokens by inverse CDF from logits ``[A, V]``, which are overwritten, and uniforms ``[A]`` in [0, 1).

    :param Tensor temperatures: ``[A]``, which divide the logits before the options do.
    """
    rows = rows_in_cache(logits)
    some = zip(logits.split(rows), u.split(rows), repeat(None) if temperatures is None else temperatures.split(rows), strict=False)
    parts = [_drawn(own, points, options, figures, each) for own, points, each in some]
    return parts[0] if len(parts) == 1 else Draw(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _drawn(logits: Tensor, u: Tensor, options: StepOptions, figures: tuple[TokenFigure, ...], temperatures: Tensor | None) -> Draw:
    warped = warp(tempered(logits, temperatures), options)
    tokens, log_probs = inverse_cdf(warped, u, overwrite=not figures or warped is not logits)
    if not figures:
        return Draw(tokens, log_probs, logits.new_empty(len(u), 0, dtype=torch.float64))
    return Draw(tokens, log_probs, torch.stack([figure(logits, tokens) for figure in figures], -1))


def inverse_cdf(logits: Tensor, u: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens ``[A]`` and their log-probabilities from logits ``[A, V]`` and uniforms ``[A]`` in [0, 1).

    Large vocabularies are searched in two levels: blocks by their mass in float32, of which few are added in a row, so that a token's
    probability is right to a few units in the last place however small it is; then the tokens of one block in float64. A token of zero
    probability is never returned, whatever the rounding.

    :param bool overwrite: destroy the logits, which saves a copy of them.
    """
    top = logits.amax(-1, keepdim=True)
    return inverse_cdf_of_masses((logits.sub_(top) if overwrite else logits - top).exp_(), u)


def inverse_cdf_of_masses(mass: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`inverse_cdf`, from masses ``[A, V]`` that need not be normalised."""
    size = mass.shape[-1]
    if size <= _ONE_LEVEL:
        cdf = mass.cumsum(-1, dtype=torch.float64)
        total = cdf[:, -1:]
        token = _search(cdf, u[:, None] * total)
    else:
        even = size - size % _BLOCK
        blocks = mass[:, :even].unflatten(-1, (-1, _BLOCK))
        sums = blocks.sum(-1)
        if even < size:
            sums = torch.cat([sums, mass[:, even:].sum(-1, keepdim=True)], -1)
        outer = sums.cumsum(-1, dtype=torch.float64)
        total = outer[:, -1:]
        target = u[:, None] * total
        block = _search(outer, target)
        own = sums.gather(-1, block)  # float32, of which the sums below make float64
        if even == size:
            inside = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0]
        else:
            column = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
            inside = torch.where(column < size, mass.gather(-1, column.clamp(max=size - 1)), 0.0)
        inner = inside.cumsum(-1, dtype=torch.float64)
        # How far into the block the target lies, on the scale of the block's exact sum.
        rest = (target - outer.gather(-1, block) + own) * (inner[:, -1:] / own)
        token = block * _BLOCK + _search(inner, rest)
    return token[:, 0], (mass.gather(-1, token) / total).log_()[:, 0].to(mass.dtype)


def _search(cdf: Tensor, target: Tensor) -> Tensor:
    """First index ``[A, 1]`` whose cumulative mass exceeds the target ``[A, 1]``, at most the last one of positive mass."""
    total = cdf[:, -1:]
    # Between 0 and the number before the total, every target has an index of positive mass: no search for the first and the last of them.
    inside = torch.minimum(target.clamp(min=0.0), torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, inside, right=True)


def sample_each(requests: Sequence[DecodeRequest]) -> list[Draw]:
    """Answer decode requests, each with its own forward pass."""
    for decoder, tokens, alive, *_ in requests:
        if tokens is not None:
            decoder.advance(tokens, alive)
    return [draw(r.decoder.logits, r.uniforms, r.options, r.figures, r.temperatures) for r in requests]
