"""From the event loop of the server to the thread of the programs and back."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from ..inference.concurrent import Job, ProgramServer, Stopped
from .errors import ApiError, DeadlinePassed, HungUp, ShuttingDown, draining
from .limits import Limits
from .metrics import Metrics
from .progress import Progress, Tell
from .solver import Outcome

_FIRST_GUESS = 1.0
"""Seconds of a program, before there was one."""
_LONGEST_WAIT = 60
"""Seconds that a client is asked to stay away at most; OpenAI's client heeds no longer ones."""


class Event(NamedTuple):
    """Something that a program of a request has come to.

    :ivar int number: of the program.
    :ivar what: a :class:`Progress`, an :class:`Outcome`, or what went wrong.
    """

    number: int
    what: Progress | Outcome | BaseException


class Runs:
    """The programs of one request."""

    def __init__(self, dispatcher: Dispatcher, count: int, deadline: float) -> None:
        self._dispatcher, self.count = dispatcher, count
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._jobs: list[Job] = []
        self._timer = self._loop.call_later(deadline, self.stop, DeadlinePassed("the deadline has passed"))

    def tell(self, number: int, what: Any) -> None:
        """From the thread of the programs."""
        self._dispatcher.call(self._events.put_nowait, Event(number, what))

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        job.future.add_done_callback(functools.partial(self._done, len(self._jobs) - 1))

    def _done(self, number: int, future: Future[Outcome]) -> None:
        error = future.exception()
        self._dispatcher.call(self._ended, Event(number, future.result() if error is None else error))

    def _ended(self, event: Event) -> None:
        self._events.put_nowait(event)

    def stop(self, reason: Stopped) -> None:
        """End what is under way; of no effect on what has ended."""
        for job in self._jobs:
            job.stop(reason)

    def close(self) -> None:
        """Nobody waits any more."""
        self._timer.cancel()
        if not all(job.future.done() for job in self._jobs):
            self._dispatcher.metrics.hung_up.inc()
            self.stop(HungUp("nobody waits for the answer"))

    async def events(self, silence: float = math.inf) -> AsyncIterator[Event | None]:
        """Events until every program has ended; ``None`` after so many seconds without one.

        :raises BaseException: with which a program failed; the others of the request are stopped.
        """
        left = self.count
        while left:
            try:
                event = await asyncio.wait_for(self._events.get(), None if math.isinf(silence) else silence)
            except TimeoutError:
                yield None
                continue
            if isinstance(event.what, BaseException):
                self._timer.cancel()
                self.stop(HungUp("another prompt of the request has failed"))
                raise event.what
            left -= isinstance(event.what, Outcome)
            yield event

    async def outcomes(self) -> list[Outcome]:
        """Of all programs, in their order."""
        found: dict[int, Outcome] = {}
        async for event in self.events():
            if event is not None and isinstance(event.what, Outcome):
                found[event.number] = event.what
        return [found[number] for number in range(self.count)]


class Dispatcher:
    """Gives programs to a :class:`~ppl_llm.inference.ProgramServer`, as many as there is room for.

    :param Limits limits: of the gateway.
    :param Metrics metrics: that count what happens.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self.metrics = limits, metrics
        self._programs = ProgramServer(max_sequences=limits.sequences, max_programs=limits.concurrent)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs: set[Runs] = set()
        self._active = 0
        self._seconds = _FIRST_GUESS  # of a program that is under way, a moving average
        self.draining = False

    @property
    def active(self) -> int:
        """Programs under way or waiting."""
        return self._active

    def start(self, programs: Sequence[Callable[[Tell], Callable[[], Outcome]]], seeds: Sequence[int], deadline: float) -> Runs:
        """Start a program for each prompt of a request.

        :param programs: each makes a program, given whom it tells of its progress.
        :raises ApiError: with status 429 where the queue is full, 503 while the server shuts down.
        """
        if self.draining:
            raise draining()
        room = self._limits.concurrent + self._limits.queue
        if self._active + len(programs) > room:
            self.metrics.refused.inc()
            wait = self.retry_after(len(programs))
            message = f"{self._active} programs are under way or wait already, of at most {room}; try again in {wait} s"
            raise ApiError(429, message, code="queue_full", kind="rate_limit_error", headers={"Retry-After": str(wait)})
        self._loop = asyncio.get_running_loop()
        runs = Runs(self, len(programs), deadline)
        self._runs.add(runs)
        for number, (program, seed) in enumerate(zip(programs, seeds, strict=True)):
            self._active += 1
            timed = _Timed(program(functools.partial(runs.tell, number)))
            job = self._programs.submit(timed, seed=seed)
            job.future.add_done_callback(functools.partial(self._count, timed))
            runs.add(job)
        self.metrics.programs.set(self._active)
        return runs

    def finish(self, runs: Runs) -> None:
        """A request has been answered, or nobody waits for it."""
        runs.close()
        self._runs.discard(runs)

    def retry_after(self, wanted: int = 1) -> int:
        """Seconds after which there is room again, as programs have been so far."""
        too_many = self._active + wanted - self._limits.concurrent - self._limits.queue
        return min(_LONGEST_WAIT, max(1, math.ceil(self._seconds * max(1, too_many) / self._limits.concurrent)))

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Have the event loop call a function; from any thread. After the end of the loop nobody listens."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *args)

    def stop_all(self) -> None:
        """End what is under way: the grace period is over."""
        for runs in list(self._runs):
            runs.stop(ShuttingDown("the server is shutting down"))

    def close(self) -> None:
        self.draining = True
        self.stop_all()
        self._programs.close()

    def _count(self, timed: _Timed, future: Future[Outcome]) -> None:
        self.call(self._ended, timed.seconds)

    def _ended(self, seconds: float | None) -> None:
        self._active -= 1
        self.metrics.programs.set(self._active)
        if seconds is not None:
            self._seconds += 0.2 * (seconds - self._seconds)


class _Timed:
    """A function with the seconds that it took, ``None`` if it was never called."""

    def __init__(self, function: Callable[[], Outcome]) -> None:
        self._function = function
        self.seconds: float | None = None

    def __call__(self) -> Outcome:
        began = time.perf_counter()
        try:
            return self._function()
        finally:
            self.seconds = time.perf_counter() - began
