"""Steps that several programs wait for, sampled token by token in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING

import torch

from ..inference.cost import Uncounted, count

if TYPE_CHECKING:
    from .decoding import Move


class StepRequest:
    """A step of the lanes of one program.

    :param JointDecoding service: samples it together with others.
    :param moves: goes through the step, and stops at each forward pass that is due.
    :param int lanes: at the beginning of the step.
    :ivar move: the next forward pass, ``None`` before the first one.
    """

    def __init__(self, service: JointDecoding, moves: Iterator[Move], lanes: int) -> None:
        self.service, self.lanes = service, lanes
        self.finished = False
        self.error: BaseException | None = None
        self.move: Move | None = None
        self._moves = moves
        self._variables = copy_context()  # the program's, in which its costs are counted

    def go_on(self) -> None:
        """Up to the next forward pass."""
        try:
            self.move = self._variables.run(next, self._moves, None)
        except Exception as error:  # whatever it is, it is for the program that asked
            self.fail(error)
        else:
            self.finished = self.move is None
            self.lanes = 0 if self.move is None else len(self.move.tokens)

    def fail(self, error: BaseException) -> None:
        self.error, self.finished = error, True

    def charge(self, seconds: float) -> None:
        """Count a forward pass of which these seconds are the program's share."""
        self._variables.run(count, lm_forwards=1, lm_seconds=seconds)


class JointDecoding:
    """Advances the steps of several programs by a token at a time.

    :param forward: makes moves of different programs in one pass.
    """

    def __init__(self, forward: Callable[[Sequence[Move]], None]) -> None:
        self._forward = forward

    @torch.no_grad()
    def advance(self, requests: Sequence[StepRequest]) -> None:
        for request in requests:
            if request.move is None:
                request.go_on()
        going = [request for request in requests if not request.finished]
        moves = [request.move for request in going if request.move is not None]
        if not moves:
            return
        began = time.perf_counter()
        try:
            with Uncounted():
                self._forward(moves)
        except Exception as error:  # of a pass that they share
            for request in going:
                request.fail(error)
            return
        second_per_lane = (time.perf_counter() - began) / sum(request.lanes for request in going)
        for request in going:
            request.charge(second_per_lane * request.lanes)
            request.go_on()
