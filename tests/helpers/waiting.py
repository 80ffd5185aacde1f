"""Work that a program of ``run_concurrently`` waits for, so that programs take turns in the middle of their sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_llm.inference.concurrent.program import current_program


class Counting:
    """A service whose requests need a number of rounds.

    :ivar list batches: sequences of each round.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []

    def advance(self, requests: Sequence[Waiting]) -> None:
        self.batches.append(sum(request.sequences for request in requests))
        for request in requests:
            if request.rounds == request.fails_at:
                request.error = ArithmeticError("this one fails")
            request.rounds -= 1
            request.finished = request.rounds == 0 or request.error is not None


class Waiting:
    def __init__(self, service: Counting, sequences: int, rounds: int, fails_at: int = 0) -> None:
        self.service, self.sequences, self.rounds, self.fails_at = service, sequences, rounds, fails_at
        self.finished, self.error = False, None


def wait(service: Counting, sequences: int = 1, rounds: int = 1, fails_at: int = 0) -> None:
    program = current_program()
    if program is not None:
        program.wait(Waiting(service, sequences, rounds, fails_at))
