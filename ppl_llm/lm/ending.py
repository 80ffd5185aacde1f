"""Where a step ends in tokens that are already there."""

from __future__ import annotations

import torch
from torch import Tensor

from .stopping import StopAutomaton


def step_lengths(tokens: Tensor, automaton: StopAutomaton, eos_ids: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the steps that sequences begin with.

    :param Tensor tokens: ``[A, M]``, padded with -1 on the right.
    :param Tensor room: ``[A]``, longest step of each.
    :returns: lengths ``[A]``, and whether the step is over there ``[A]``: by a delimiter, the end of the text or for want of room.
    """
    state = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    length = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
    over = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    open_ = ~over
    for k, token in enumerate(tokens.unbind(-1)):
        open_ = open_ & (token >= 0)
        state = automaton.step(state, token.clamp(min=0))
        length += open_
        ends = (state == automaton.accept) | torch.isin(token, eos_ids) | (k + 1 >= room)
        over |= open_ & ends
        open_ = open_ & ~ends
    return length, over
