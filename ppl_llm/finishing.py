"""What finishes a solution besides the language model: a pattern of its last step, or a text wherever it comes."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .context_lm import ContextLM


def before_any(text: str, stops: tuple[str, ...]) -> str:
    """A text up to that of these texts which is the first to be complete in it."""
    _, begin = min(((at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0), default=(0, len(text)))
    return text[:begin]


def decoded(lm: ContextLM, tokens: Tensor, begin: Tensor, end: Tensor) -> str:
    """The text of a part of one sequence ``[L]``."""
    return lm.decode(tokens[int(begin) : int(end)].tolist())


def finished_by(
    lm: ContextLM,
    tokens: Tensor,
    bounds: tuple[Tensor, Tensor, Tensor],
    finish: str | None,
    final_stop: tuple[str, ...],
    inside: Tensor | None = None,
) -> Tensor:
    """Sequences ``[*batch_shape]`` whose last step matches a regular expression, or whose text has a final stop.

    :param Tensor tokens: ``[*batch_shape, L]``.
    :param bounds: lengths ``[*batch_shape]`` of the prompts, before the last step and after it.
    :param Tensor inside: ``[*batch_shape]``, sequences whose last step was of thinking, in which the expression is not looked for.
    """
    begins, starts, ends = bounds
    found = torch.zeros_like(ends, dtype=torch.bool)
    for sequence in map(tuple, torch.ones(ends.shape).nonzero().tolist()):
        looked_for = finish is not None and (inside is None or not bool(inside[sequence]))
        matched = looked_for and bool(re.search(str(finish), decoded(lm, tokens[sequence], starts[sequence], ends[sequence])))
        text = decoded(lm, tokens[sequence], begins[sequence], ends[sequence]) if final_stop else ""
        found[sequence] = matched or any(stop in text for stop in final_stop)
    return found
