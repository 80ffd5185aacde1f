"""What finishes a solution besides the language model: a pattern of its last step, or a text wherever it comes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .context import Context


def before_any(text: str, stops: tuple[str, ...]) -> str:
    """A text up to that of these texts which is the first to be complete in it."""
    _, begin = min(((at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0), default=(0, len(text)))
    return text[:begin]


def whole_text(context: Context) -> str:
    """What was generated in a single sequence, a final stop included."""
    return context.lm.decode(context.tokens[int(context.prompt_lengths) : int(context.lengths)].tolist())


def finished_by(context: Context, starts: Tensor, finish: str | None) -> Tensor:
    """Sequences ``[*batch_shape]`` whose last step matches a regular expression, or whose text has a final stop.

    :param Tensor starts: ``[*batch_shape]``, lengths before the step.
    """
    found = torch.zeros_like(context.done)
    for sequence, start, end in context._ranges(starts, context.lengths):
        matched = finish is not None and bool(re.search(finish, context.lm.decode(context.tokens[sequence][start:end].tolist())))
        text = whole_text(context[sequence] if sequence else context) if context.final_stop else ""  # type: ignore[index]
        found[sequence] = matched or any(stop in text for stop in context.final_stop)
    return found
