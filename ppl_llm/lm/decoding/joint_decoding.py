"""Steps that several programs wait for, sampled token by token in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ...inference.concurrent.shared_request import SharedRequest
from ...inference.cost import Uncounted, count
from .decoder import DecodeRequest, DecodeRequests, Draw


class CountedRequest(SharedRequest):
    """A step of the sequences of one program, whose share of the cost is counted where the program counts."""

    def charge(self, seconds: float, passes: int = 1) -> None:
        """Count forward passes of which these seconds are the program's share."""
        self.call(count, lm_forwards=passes, lm_seconds=seconds)


class StepRequest(CountedRequest):
    """A step in progress of one program.

    :param JointDecoding service: samples it together with others.
    :param requests: the step's decode requests, one after the other.
    :param int sequences: how many there are at the beginning of the step.
    :ivar due: the decode request to be answered next, ``None`` before the step has begun.
    """

    def __init__(self, service: JointDecoding, requests: DecodeRequests, sequences: int) -> None:
        super().__init__(service, sequences)
        self.due: DecodeRequest | None = None
        self._requests = requests

    def proceed(self, draw: Draw | None = None) -> None:
        """Up to the next decode request; ``draw`` answers this one."""
        try:
            self.due = self.call(self._requests.send, draw)
            self.sequences = len(self.due.uniforms)
        except StopIteration:
            self.finished = True
        except Exception as error:  # whatever it is, it is for the program that asked
            self.fail(error)


class JointDecoding:
    """Advances the steps of several programs by a token at a time.

    :param sample_tokens: answers decode requests of different programs in one pass.
    """

    def __init__(self, sample_tokens: Callable[[Sequence[DecodeRequest]], list[Draw]]) -> None:
        self._sample_tokens = sample_tokens

    @torch.no_grad()
    def advance(self, requests: Sequence[StepRequest]) -> None:
        for request in requests:
            if request.due is None:
                request.proceed()
        waiting = [request for request in requests if not request.finished]
        due = [request.due for request in waiting if request.due is not None]
        if not due:
            return
        began = time.perf_counter()
        try:
            with Uncounted():
                draws = self._sample_tokens(due)
        except Exception as error:  # of a pass that they share
            for request in waiting:
                request.fail(error)
            return
        passing = [each.tokens is not None for each in due]
        total = sum(request.sequences for request, passes in zip(waiting, passing, strict=True) if passes)
        seconds = time.perf_counter() - began
        for request, passes, draw in zip(waiting, passing, draws, strict=True):
            if passes:
                request.charge(seconds * request.sequences / total)
            request.proceed(draw)
