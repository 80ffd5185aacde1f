"""Whose turn it is: which program runs, which waits for a place in the batch, and whose request is being worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .program import Program, Request, Service


class Turns:
    """Programs that share batches. For one thread; programs may be added between any two turns.

    :param int max_sequences: sequences that a batch may have; a single step with more of them is run by itself.
    :param int max_programs: programs under way at a time.
    """

    def __init__(self, max_sequences: int, max_programs: int) -> None:
        self._max_sequences, self._max_programs = max_sequences, max_programs
        self._new: deque[Program] = deque()
        self._queued: deque[Program] = deque()
        self._served: list[Program] = []

    def add(self, program: Program) -> None:
        """Start a program as soon as there is a place for it."""
        self._new.append(program)

    @property
    def idle(self) -> bool:
        """Whether there is no program."""
        return not (self._new or self._queued or self._served)

    @property
    def waiting(self) -> int:
        """Programs that have not begun."""
        return len(self._new)

    def turn(self) -> Iterator[Program]:
        """Fill the batch and do a little of its work: gives the programs that have ended, each as soon as it has."""
        yield from self._admit()
        self._work()
        done = [program for program in self._served if _request(program).finished]
        self._served = [program for program in self._served if not _request(program).finished]
        for program in done:
            yield from self._let_run(program)

    def drop(self, program: Program, reason: BaseException) -> None:
        """End a program by an exception where it waits; one that has not begun never begins."""
        for place in (self._new, self._queued, self._served):
            if program in place:
                place.remove(program)
        program.end(reason)

    def _admit(self) -> Iterator[Program]:
        """Fill the places of the batch: first with those who wait for one, then with new programs."""
        while True:
            sequences = sum(_request(program).sequences for program in self._served)
            if self._queued and (not self._served or sequences + _request(self._queued[0]).sequences <= self._max_sequences):
                self._served.append(self._queued.popleft())
            elif self._new and not self._queued and sequences < self._max_sequences and len(self._served) < self._max_programs:
                yield from self._let_run(self._new.popleft())
            else:
                return

    def _let_run(self, program: Program) -> Iterator[Program]:
        program.proceed()
        if program.finished:
            yield program
        elif _request(program).sequences == 0:  # needs no place in a batch
            self._served.append(program)
        else:
            self._queued.append(program)

    def _work(self) -> None:
        by_service: dict[int, list[Request]] = {}
        for program in self._served:
            by_service.setdefault(id(_request(program).service), []).append(_request(program))
        for requests in by_service.values():
            service: Service = requests[0].service
            service.advance(requests)


def _request(program: Program) -> Request:
    assert program.request is not None
    return program.request
