"""An event loop in a thread, so that ordinary code can have many requests under way at once."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..inference.concurrent.future_service import wait_for
from ..inference.concurrent.program import current_program

T = TypeVar("T")

_POLL_SECONDS = 0.2
"""Ctrl-C is noticed at least this often, also where waiting for a lock cannot be interrupted."""
_GRACE_SECONDS = 5.0
"""Time for cancelled requests to close their connections."""


class BackgroundLoop:
    """A thread that runs an event loop until the process ends. Notebooks, whose own loop is busy, can wait for it too."""

    _current: BackgroundLoop | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="ppl_llm requests", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    @classmethod
    def get(cls) -> BackgroundLoop:
        """The loop of this process; a fork has its own."""
        with cls._lock:
            if cls._current is None or cls._current.pid != os.getpid():
                cls._current = cls()
            return cls._current

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine. An exception here, Ctrl-C above all, cancels it. Programs that take turns with this one run meanwhile."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        program = current_program()
        try:
            if program is not None:
                wait_for(future, program)
            while not concurrent.futures.wait([future], timeout=_POLL_SECONDS).done:
                pass
        except BaseException:
            self.cancel(future)
            raise
        return future.result()

    def cancel(self, future: concurrent.futures.Future[Any]) -> None:
        """Cancel, and wait until whatever the coroutine held is released."""
        future.cancel()
        idle = asyncio.run_coroutine_threadsafe(_settled(), self.loop)
        concurrent.futures.wait([idle], timeout=_GRACE_SECONDS)

    def _stop(self) -> None:
        if self.pid != os.getpid() or not self._thread.is_alive():
            return
        cancelled = asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop)
        concurrent.futures.wait([cancelled], timeout=_GRACE_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_GRACE_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


async def _settled() -> None:
    """Return when no task is in the middle of being cancelled."""
    me = asyncio.current_task()
    pending = [task for task in asyncio.all_tasks() if task is not me and task.cancelling()]
    if pending:
        await asyncio.wait(pending, timeout=_GRACE_SECONDS)


async def _cancel_all() -> None:
    me = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not me:
            task.cancel()
    await _settled()
