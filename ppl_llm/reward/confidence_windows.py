"""Means of figures of tokens: over all of them, in windows, or over the answer."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from ..context import Context

WINDOWED = ("least", "bottom", "tail")
"""What windows are for."""

OVER = ("step", "mean", *WINDOWED, "answer")

_TENTH = 0.1


def reduced(values: Tensor, lengths: Tensor, over: str, window: int | None = None) -> Tensor:
    """``[*batch]`` in float64.

    :param Tensor values: ``[*batch, W]``, 0 behind the ends.
    :param Tensor lengths: ``[*batch]``, tokens of each.
    :param str over: ``mean``, or ``least``, ``bottom`` or ``tail``, for windows of ``window`` tokens.
    """
    if over == "mean" or window is None:
        return values.sum(-1) / lengths.clamp(min=1)
    column = torch.arange(values.shape[-1], device=values.device)
    if over == "tail":
        inside = (column >= (lengths - window)[..., None]) & (column < lengths[..., None])
        return torch.where(inside, values, 0.0).sum(-1) / lengths.clamp(min=1, max=window)
    means, number = group_means(values, lengths, window)
    if over == "least":
        return means.amin(-1)
    ordered = means.sort(-1).values
    least = (number * _TENTH).long().clamp(min=1)
    chosen = torch.arange(ordered.shape[-1], device=ordered.device) < least[..., None]
    return torch.where(chosen, ordered, 0.0).sum(-1) / least


def group_means(values: Tensor, lengths: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Means ``[*batch, G]`` of all windows of a size, inf behind the last, and how many there are ``[*batch]``. A text that is shorter than
    a window is one."""
    size = lengths.clamp(min=1, max=window)
    # An infinite figure makes the windows that it is in infinite, and no other one nan.
    infinite = values.isinf()
    parts = (torch.where(infinite, 0.0, values), torch.where(infinite, values.sign(), 0.0))
    sums, infinities = (torch.nn.functional.pad(each.cumsum(-1), (1, 0)) for each in parts)
    number = (lengths - size + 1).clamp(min=1)
    begins = torch.arange(int(number.max()), device=values.device).expand(*lengths.shape, -1)
    ends = (begins + size[..., None]).clamp(max=values.shape[-1])
    begins = begins.clamp(max=values.shape[-1])
    total, odd = (each.gather(-1, ends) - each.gather(-1, begins) for each in (sums, infinities))
    means = torch.where(odd == 0, total / size[..., None], odd * torch.inf)
    real = torch.arange(means.shape[-1], device=values.device) < number[..., None]
    return torch.where(real, means, torch.inf), number


def answer_places(context: Context, width: int) -> Tensor:
    """``[*batch, width]``: the tokens behind the prompt that the answer of each sequence is written with, where it was last."""
    total = context.lengths.numel()
    found = torch.zeros(total, width, dtype=torch.bool)
    flat = context.flat(torch.arange(total))
    for n, answer in enumerate(flat.answers()):
        tokens = flat.tokens[n, int(flat.prompt_lengths[n]) : int(flat.lengths[n])].tolist()

        def length(k: int, tokens: list[int] = tokens) -> int:
            return len(context.lm.decode(tokens[:k]))

        begin = -1 if answer is None else context.lm.decode(tokens).rfind(str(answer))
        if begin >= 0:
            counts = range(len(tokens) + 1)
            first = bisect.bisect_right(counts, begin, key=length) - 1
            last = bisect.bisect_left(counts, begin + len(str(answer)), key=length) - 1
            found[n, first : last + 1] = True
    return found.to(context.tokens.device).view(*context.batch_shape, width)
