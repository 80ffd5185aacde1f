"""Work that a program of ``run_concurrently`` waits for, so that programs take turns in the middle of their sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_llm.inference.concurrent.program import current_program


class Counting:
    """A service whose requests need a number of turns.

    :ivar list batches: sequences of each turn.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []

    def advance(self, requests: Sequence[Waiting]) -> None:
        self.batches.append(sum(request.sequences for request in requests))
        for request in requests:
            if request.turns == request.fails_at:
                request.error = ArithmeticError("this one fails")
            request.turns -= 1
            request.finished = request.turns == 0 or request.error is not None


class Waiting:
    def __init__(self, service: Counting, sequences: int, turns: int, fails_at: int = 0) -> None:
        self.service, self.sequences, self.turns, self.fails_at = service, sequences, turns, fails_at
        self.finished, self.error = False, None


def wait(service: Counting, sequences: int = 1, turns: int = 1, fails_at: int = 0) -> None:
    program = current_program()
    if program is not None:
        program.wait(Waiting(service, sequences, turns, fails_at))
