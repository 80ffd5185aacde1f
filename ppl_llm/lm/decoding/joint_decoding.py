"""Steps that several programs wait for, sampled token by token in one batch."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...inference.cost import Uncounted
from .counted_request import CountedRequest
from .decoder import Draw, Move, Moves
from .sampling import inverse_cdf, warp

if TYPE_CHECKING:
    from ...kv_cache.joint_pass import JointPass


class StepRequest(CountedRequest):
    """A step of the lanes of one program.

    :param JointDecoding service: samples it together with others.
    :param moves: goes through the step, and stops at each move that is due.
    :param int lanes: at the beginning of the step.
    :ivar move: the next one, ``None`` before the step has begun.
    """

    def __init__(self, service: JointDecoding, moves: Moves, lanes: int) -> None:
        super().__init__(service, lanes)
        self.move: Move | None = None
        self._moves = moves

    def go_on(self, draw: Draw | None = None) -> None:
        """Up to the next move; ``draw`` is what this one gave."""
        try:
            self.move = self._variables.run(self._moves.send, draw)  # type: ignore[arg-type]
            self.lanes = len(self.move.uniforms)
        except StopIteration:
            self.finished = True
        except Exception as error:  # whatever it is, it is for the program that asked
            self.fail(error)


class JointDecoding:
    """Advances the steps of several programs by a token at a time.

    :param advance: a method of the language model, which owns this object: makes moves of different programs in one pass.
    """

    def __init__(self, advance: Callable[[Sequence[Move]], list[Draw]]) -> None:
        self._advance = weakref.WeakMethod(advance)  # a circle would keep the model in memory until Python looks for circles

    @torch.no_grad()
    def advance(self, requests: Sequence[StepRequest]) -> None:
        for request in requests:
            if request.move is None:
                request.go_on()
        going = [request for request in requests if not request.finished]
        moves = [request.move for request in going if request.move is not None]
        if not moves:
            return
        advance = self._advance()
        assert advance is not None
        began = time.perf_counter()
        try:
            with Uncounted():
                draws = advance(moves)
        except Exception as error:  # of a pass that they share
            for request in going:
                request.fail(error)
            return
        passing = [move.tokens is not None for move in moves]
        lanes = sum(request.lanes for request, passes in zip(going, passing, strict=True) if passes)
        seconds = time.perf_counter() - began
        for request, passes, draw in zip(going, passing, draws, strict=True):
            if passes:
                request.charge(seconds * request.lanes / lanes)
            request.go_on(draw)


def advance_each(moves: Sequence[Move]) -> list[Draw]:
    """Make moves one after the other."""
    for decoder, tokens, alive, _, _ in moves:
        if tokens is not None:
            decoder.advance(tokens, alive)
    return [inverse_cdf(warp(move.decoder.logits, move.options), move.uniforms, overwrite=True) for move in moves]


def advance_together(moves: Sequence[Move], joint_pass: JointPass) -> list[Draw]:
    """Make moves of lanes in slabs, in one forward pass."""
    passing = [i for i, move in enumerate(moves) if move.tokens is not None]
    if len(passing) < 2:
        return advance_each(moves)
    passing.sort(key=lambda i: hash(moves[i].options))  # equal ones are drawn from in one go
    logits = joint_pass.run([moves[i].decoder.prepare(moves[i].tokens) for i in passing])
    draws = dict(zip(passing, _drawn([moves[i] for i in passing], logits), strict=True))
    others = [i for i in range(len(moves)) if i not in draws]
    draws |= zip(others, advance_each([moves[i] for i in others]), strict=True)
    return [draws[i] for i in range(len(moves))]


def _drawn(moves: Sequence[Move], logits: Sequence[Tensor]) -> list[Draw]:
    """Draws of moves after their forward passes, of neighbours with equal options in one go.

    :param logits: of the moves' lanes one after the other, ``[A, V]`` each; they are overwritten.
    """
    draws: list[Draw] = []
    for batch in logits:
        begin = 0
        while begin < len(batch):
            options, end = moves[len(draws)].options, begin
            same: list[Move] = []
            for move in moves[len(draws) :]:
                if move.options != options or end == len(batch):
                    break
                same.append(move)
                end += len(move.uniforms)
            sizes = [len(move.uniforms) for move in same]
            uniforms = torch.cat([move.uniforms for move in same])
            found = inverse_cdf(warp(batch[begin:end], options), uniforms, overwrite=True)
            draws += zip(*(each.split(sizes) for each in found), strict=True)
            for move, rows in zip(same, batch[begin:end].split(sizes), strict=True):
                move.decoder.finish(rows, move.alive)
            begin = end
    return draws
