"""What a step in progress waits for: the next token of some lanes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..base import StepOptions


class Decoder(Protocol):
    """Next-token logits of a shrinking set of lanes.

    :ivar Tensor lanes: ``[A]`` flat lane number of each row.
    :ivar Tensor logits: ``[A, V]`` logits of each row's next token; sampling overwrites them.
    """

    lanes: Tensor
    logits: Tensor

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Append ``tokens [A]`` where ``alive [A]`` and compute the next logits; other rows may hold anything afterwards."""
        ...

    def keep(self, alive: Tensor) -> None:
        """Drop the rows that are not alive; rows may change places, ``lanes`` with them. ``logits`` are void until :meth:`advance`."""
        ...


class Move(NamedTuple):
    """What is due before the next token of some lanes is known: a forward pass, and a draw from its logits.

    :ivar Decoder decoder: theirs.
    :ivar tokens: ``[A]`` and ``alive [A]`` of :meth:`Decoder.advance`, ``None`` where the decoder has the logits already.
    :ivar Tensor uniforms: ``[A]``, for the draw.
    """

    decoder: Any
    tokens: Tensor | None
    alive: Tensor
    uniforms: Tensor
    options: StepOptions


Draw = tuple[Tensor, Tensor]
"""Tokens ``[A]`` and their log-probabilities ``[A]``."""

Moves = Generator[Move, Draw, None]
"""A step in progress: it is sent the draw of each of its moves."""
