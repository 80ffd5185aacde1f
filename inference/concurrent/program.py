"""A program that takes turns with others, and waits for work that is done for several of them together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from typing import Any, Protocol

import torch

from ..util.process_state import ProcessState


class Request(Protocol):
    """Work that a program waits for.

    :ivar Service service: does it, together with that of other requests of the same service.
    :ivar int sequences: rows of the batch that it takes up at present.
    :ivar bool finished: whether it is done, or has failed.
    :ivar error: why it failed.
    """

    sequences: int
    error: BaseException | None

    @property
    def finished(self) -> bool: ...

    @property
    def service(self) -> Service: ...


class Service(Protocol):
    def advance(self, requests: Sequence[Any]) -> None:
        """A little of the work of each request. A failure of a single request is recorded in it, not raised."""
        ...


class Stopped(BaseException):
    """Raised inside a program that must end, say because another one has failed; handlers of ``Exception`` let it pass."""


class Program:
    """A function in its own thread that runs only while its owner waits for it, so that one program runs at a time.

    :param function: called without arguments.
    :param int seed: of its random number generators. Whenever it continues, it finds them and Pyro's handlers as it left them.
    :param Context variables: in which it runs.
    :ivar Request request: what it waits for, ``None`` while it does not.
    :ivar result: what the function returned.
    :ivar error: what it raised.
    """

    def __init__(self, function: Callable[[], Any], seed: int, variables: Context) -> None:
        self.request: Request | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.stop: BaseException | None = None
        self._function, self._seed = function, seed
        self._state: ProcessState | None = None
        self._mine, self._owners = threading.Semaphore(0), threading.Semaphore(0)
        self._grad = torch.is_grad_enabled()
        self._thread = threading.Thread(target=variables.run, args=(self._main,), name="ppl_llm program", daemon=True)

    @property
    def shares(self) -> bool:
        """Whether it can wait for work that is done together with that of others: this is its thread, and not that of a service, in which
        parts of it may run; and nobody ends it. One that ends does alone what it needs to tell what it has found."""
        return threading.current_thread() is self._thread and self.stop is None

    @property
    def finished(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    def proceed(self) -> None:
        """Let it run until it waits for the next request or ends; for its owner.

        Ctrl-C takes effect when it has come so far; a second one at once.
        """
        interrupted: KeyboardInterrupt | None = None
        before = ProcessState.now()
        (self._state or ProcessState.of_seed(self._seed)).enter()
        try:
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._mine.release()
            while True:
                try:
                    self._owners.acquire()
                    break
                except KeyboardInterrupt as error:
                    if interrupted is not None:
                        raise
                    interrupted = error
            self._state = ProcessState.now()
        finally:
            before.enter()
        if self.request is None:
            self._thread.join()
        if interrupted is not None:
            raise interrupted

    def end(self, reason: BaseException) -> None:
        """Raise an exception in it wherever it waits, until it waits no more; for its owner. One that has not begun is left alone."""
        while self.request is not None:
            self.stop = reason
            self.proceed()

    def wait(self, request: Request) -> None:
        """Hand a request over and come back when it is done; for the program itself.

        :raises BaseException: with which the request failed.
        """
        self.request = request
        self._owners.release()
        self._mine.acquire()
        self.request = None
        if self.stop is not None:
            raise self.stop
        if request.error is not None:
            raise request.error

    def _main(self) -> None:
        _CURRENT.set(self)
        try:
            with torch.set_grad_enabled(self._grad):
                self.result = self._function()
        except BaseException as error:
            self.error = error
        finally:
            self._owners.release()


_CURRENT: ContextVar[Program | None] = ContextVar("ppl_llm_program", default=None)


def current_program() -> Program | None:
    """The program that this code is part of, if it takes turns with others."""
    return _CURRENT.get()
