"""Units of work on this process or on several, none lost when one of them dies."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from ..inference import SMCFailed
from ..tasks.base import Problem
from ..threads import choose_threads
from .source import Models
from .work import Unit, execute

TRIES = 3
_PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: records, or the error of the last of three tries."""

    unit: Unit
    records: list[dict[str, Any]]
    error: str | None = None


class Pool:
    """Runs units. Use it as a context.

    A worker that dies (killed, out of memory) is replaced and its unit done again; a unit that fails three times is given up.

    :param Models models: loaded once in each process.
    :param parts: groups of problems.
    :param int workers: processes; 0 works in this one.
    """

    def __init__(self, models: Models, parts: Sequence[Sequence[Problem]], workers: int) -> None:
        self.models, self.parts, self.num_workers = models, parts, workers
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def run(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Outcomes, as they come."""
        if not units:
            return
        yield from self._here(units) if self.num_workers == 0 else self._elsewhere(units)

    def _here(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        model, votes = self.models.load(), self.models.vote_options()
        for unit in units:
            # The same unit draws the same numbers: what fails here fails again.
            try:
                yield Outcome(unit, execute(unit, model, self.parts[unit.group], **votes))
            except (ValueError, RuntimeError, SMCFailed) as error:
                yield Outcome(unit, [], f"{type(error).__name__}: {error}")

    def _elsewhere(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        todo, tries = deque(units), dict.fromkeys(units, 0)
        at_once = min(self.num_workers, len(units))
        self.workers = [Worker(self.models, self.parts, at_once) for _ in range(at_once)]
        open_units = len(units)
        while open_units:
            for worker in self.workers:
                if worker.unit is None and todo:
                    worker.give(todo.popleft())
            for worker in self._ready():
                unit = worker.unit
                assert unit is not None
                answer = worker.answer()
                if isinstance(answer, list):
                    yield Outcome(unit, answer)
                    open_units -= 1
                    continue
                tries[unit] += 1
                if not worker.alive:
                    self.workers[self.workers.index(worker)] = Worker(self.models, self.parts, at_once)
                if tries[unit] < TRIES:
                    todo.append(unit)
                else:
                    yield Outcome(unit, [], answer)
                    open_units -= 1

    def _ready(self) -> list[Worker]:
        busy = {worker.connection: worker for worker in self.workers if worker.unit is not None}
        return [busy[connection] for connection in wait(list(busy)) if isinstance(connection, Connection)]


class Worker:
    """A process that loads the models once and does one unit at a time."""

    def __init__(self, models: Models, parts: Sequence[Sequence[Problem]], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, models, parts, workers), daemon=True)
        # Ctrl-C is for the parent, which stops its workers: they start with the signal held back, before any of their code runs.
        resource_tracker.ensure_running()  # it would let the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.unit: Unit | None = None

    @property
    def alive(self) -> bool:
        """Whether it can take more work."""
        return self.process.exitcode is None

    def give(self, unit: Unit) -> None:
        """Start a unit."""
        self.unit = unit
        with suppress(OSError):  # dead already: the answer will tell
            self.connection.send(unit)

    def answer(self) -> list[dict[str, Any]] | str:
        """The records, or what went wrong."""
        self.unit = None
        try:
            answer: list[dict[str, Any]] | str = self.connection.recv()
            return answer
        except (EOFError, OSError):
            self.process.join()
            return f"the worker died (exit code {self.process.exitcode}); it may have run out of memory"

    def stop(self) -> None:
        """End the process, in the middle of its work if need be."""
        self.connection.close()
        self.process.terminate()
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, models: Models, parts: Sequence[Sequence[Problem]], workers: int) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # several at once would tear one another, and the line that tells how far everything is
    # Ended in order: what libraries hold of the machine, such as the lock of a progress bar, is given back.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    choose_threads([])  # until it is known how large the models are
    try:
        _answer(connection, models, parts, workers)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nor is the way out interrupted


def _answer(connection: Connection, models: Models, parts: Sequence[Sequence[Problem]], workers: int) -> None:
    """Units as they come, until the parent is gone."""
    model, votes = None, models.vote_options()
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):  # the parent is gone; the latter if it did not read the last answer
            return
        try:
            if model is None:
                model = models.load()
                choose_threads([model.lm, model.prm], workers)
            answer: list[dict[str, Any]] | str = execute(unit, model, parts[unit.group], **votes)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        try:
            connection.send(answer)
        except OSError:  # the parent is gone, and nobody would read this
            return
