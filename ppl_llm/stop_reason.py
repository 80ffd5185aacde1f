"""Why the steps of a reasoning program end."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class StopReason(IntEnum):
    """Why a step ended."""

    FINISHED = 0
    """The sequence had finished before this step; the step is empty."""
    DELIMITER = 1
    END_OF_TEXT = 2
    LENGTH = 3
    """``max_tokens`` was reached; the sequence continues."""
    CONTEXT_FULL = 4
    """The model's context is full, or the completion is as long as it may be; the sequence is cut there, and takes no further step."""
    PATTERN = 5
    """The step's text matched ``finish``; the sequence is finished."""
    WAIT = 6
    """Thinking was closed early: other words were written in place of the closing tag, and the sequence thinks on."""
    CLOSE = 7
    """The sequence closed its thinking; its answer follows."""
    BUDGET = 8
    """Thinking was as long as it may be and was closed; the answer follows."""


FINISHING = (StopReason.END_OF_TEXT, StopReason.CONTEXT_FULL, StopReason.PATTERN)
"""Reasons after which a sequence takes no further step."""


def stop_reasons(step: Tensor, counts: Tensor, eos_ids: Tensor, *, delimited: Tensor, full: Tensor, done: Tensor) -> Tensor:
    """A :class:`StopReason` for each sequence, ``[*batch_shape]``, told by the tokens of its step as it was drawn.

    :param Tensor step: ``[*batch_shape, max_tokens]``, padded at the right.
    :param Tensor counts: ``[*batch_shape]``, tokens of each step.
    :param Tensor eos_ids: token ids that end the text.
    :param Tensor delimited: ``[*batch_shape]``, steps that a delimiter ends.
    :param Tensor full: ``[*batch_shape]``, sequences that are as long as they may be after the step.
    :param Tensor done: ``[*batch_shape]``, sequences that had finished before it.
    """
    last = step.gather(-1, (counts - 1).clamp(min=0)[..., None])[..., 0]
    reason = torch.where(counts == step.shape[-1], StopReason.LENGTH, StopReason.DELIMITER)
    reason = torch.where(delimited, StopReason.DELIMITER, reason)
    reason = torch.where(full, StopReason.CONTEXT_FULL, reason)
    reason = torch.where(torch.isin(last, eos_ids), StopReason.END_OF_TEXT, reason)
    return torch.where(done | (counts == 0), StopReason.FINISHED, reason)
