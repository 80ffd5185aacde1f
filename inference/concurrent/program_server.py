"""Programs that come and go while others run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from typing import Any

from ..util.validation import check_count
from .program import Program, Stopped
from .turns import Turns


class Job:
    """A program that was given to a :class:`ProgramServer`.

    :ivar Future future: of what the program returns or raises.
    """

    def __init__(self, server: ProgramServer, program: Program) -> None:
        self.future: Future[Any] = Future()
        self._server, self._program = server, program

    def stop(self, reason: Stopped) -> None:
        """End it by an exception where it waits, between two tokens, with which its future fails. From any thread; returns at once."""
        self._server._stop(self, reason)


class ProgramServer:
    """Runs programs as :func:`run_concurrently` does, and takes new ones at any time, from any thread.

    A thread of its own runs them. A program that fails or is stopped leaves the others alone. Pyro's handlers and the random number
    generators of the process belong to the programs: other threads must not use them meanwhile.

    :param int max_sequences: sequences that a batch may have; a single step with more of them is run by itself.
    :param int max_programs: programs under way at a time; others wait in the order of their arrival.
    :raises ValueError: for arguments out of range.
    """

    def __init__(self, *, max_sequences: int = 256, max_programs: int = 32) -> None:
        check_count("max_sequences", max_sequences)
        check_count("max_programs", max_programs)
        self._limits = max_sequences, max_programs
        self._turns = Turns(*self._limits)
        self._changed = threading.Condition()
        self._arrived: list[Job] = []
        self._stopped: list[tuple[Job, Stopped]] = []
        self._jobs: dict[Program, Job] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="ppl_llm programs", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any], *, seed: int) -> Job:
        """Start a program as soon as there is a place for it.

        :param function: called without arguments.
        :param int seed: of its random number generators.
        :raises RuntimeError: after :meth:`close`.
        """
        job = Job(self, Program(function, seed, Context()))
        with self._changed:
            if self._closing:
                raise RuntimeError("this server of programs is closed")
            self._arrived.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Stop all programs, each by an exception where it waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _stop(self, job: Job, reason: Stopped) -> None:
        with self._changed:
            self._stopped.append((job, reason))
            self._changed.notify()

    def _main(self) -> None:
        while self._take():
            try:
                for program in self._turns.turn():
                    self._settle(program)
            except BaseException as error:  # of a service, which should have told the program that asked: nobody knows which one
                self._turns = Turns(*self._limits)
                for program in list(self._jobs):
                    program.end(error)
                    self._settle(program, error)
        for program in list(self._jobs):
            self._drop(program, Stopped("this server of programs is closed"))

    def _take(self) -> bool:
        """Let programs come and go. Whether there is more to do; waits while there is nothing."""
        with self._changed:
            while not (self._arrived or self._stopped or self._closing or not self._turns.idle):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            stopped, self._stopped = self._stopped, []
        for job in arrived:
            self._jobs[job._program] = job
            self._turns.add(job._program)
        for job, reason in stopped:
            if job._program in self._jobs:
                self._drop(job._program, reason)
        return not self._closing

    def _drop(self, program: Program, reason: Stopped) -> None:
        self._turns.drop(program, reason)
        self._settle(program, reason)

    def _settle(self, program: Program, reason: BaseException | None = None) -> None:
        """Give what a program has left to those who wait for it.

        :param reason: why it has not begun.
        """
        future, error = self._jobs.pop(program).future, program.error
        if error is None and not program.finished:
            error = reason
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(program.result)
