"""Work that happens elsewhere, such as an answer of a server: a program waits for it while others run."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Sequence
from typing import Any

from .program import Program

_GLANCE_SECONDS = 0.002
"""Wait for the first of the futures so long, where nobody else has work to do."""


class FutureRequest:
    """A future that a program waits for (a ``Request``). It holds no place in a batch.

    :param future: its result or exception is left to the caller.
    """

    sequences = 0
    error: BaseException | None = None

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self.future = future

    @property
    def service(self) -> FutureService:
        return _SERVICE

    @property
    def finished(self) -> bool:
        return self.future.done()


class FutureService:
    """Looks at futures (a ``Service``)."""

    def __init__(self) -> None:
        self._looked = 0.0

    def advance(self, requests: Sequence[FutureRequest]) -> None:
        others_worked = time.perf_counter() - self._looked > _GLANCE_SECONDS  # since the turn before: they are not kept waiting
        futures = [request.future for request in requests]
        concurrent.futures.wait(futures, timeout=0 if others_worked else _GLANCE_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED)
        self._looked = time.perf_counter()


_SERVICE = FutureService()


def wait_for(future: concurrent.futures.Future[Any], program: Program) -> None:
    """Come back when the future is done; other programs run meanwhile. For the program itself."""
    program.wait(FutureRequest(future))
