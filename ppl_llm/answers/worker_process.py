"""A process for work that may never end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_START = 120.0
"""Seconds that the process may take to start; it imports large libraries."""


class WorkerProcess:
    """Sends requests to a script in its own process, which is ended if a reply does not come in time.

    Safe in threads, which take turns, and after a fork. Signals, by which some libraries bound their time, work in the main thread only,
    and a thread cannot be ended at all.

    The script writes ``"ready"`` when it has started, then reads one JSON request ``[kind, timeout, values]`` per line and writes one JSON
    reply per line; ``null`` stands for a request that failed.

    :param Path script: imports nothing of this package.
    :param float timeout: seconds for one request.
    :param dict environment: variables to set for it.
    :ivar int timeouts: requests that were given up.
    """

    def __init__(self, script: Path, timeout: float, environment: Mapping[str, str] | None = None) -> None:
        self.script, self.timeout, self.environment = script, timeout, dict(environment or {})
        self.timeouts = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._owner = 0

    def ask(self, kind: str, *values: Any) -> Any:
        """The reply.

        :raises TimeoutError: if there is none in time, or the process ends over the request.
        :raises OSError: if the process does not start.
        """
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([kind, self.timeout, values]) + "\n")
                self._process.stdin.flush()
                # The last line is None, and comes before poll() knows of the end.
                reply, ended = self._replies.get(timeout=self.timeout), True
            except queue.Empty:
                reply, ended = None, False
            except BrokenPipeError:
                reply, ended = None, True
            except BaseException:  # Ctrl-C: the reply to this request must not answer the next one
                self._end()
                raise
            if reply is None:
                self.timeouts += 1
                self._end()
                raise TimeoutError("the process ended without a reply" if ended else f"no reply within {self.timeout} seconds")
            return json.loads(reply)

    def _start(self) -> None:
        # -P: the folder of this package must not come before the standard library and the installed packages.
        command = [sys.executable, "-P", "-W", "ignore", str(self.script)]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        options["env"] = {**os.environ, **self.environment}
        process = subprocess.Popen(command, encoding="utf-8", start_new_session=True, **options)  # Ctrl-C is for this process alone
        self._process, self._owner = process, os.getpid()
        self._replies = queue.SimpleQueue()
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, self._replies), daemon=True).start()
        self._finalizer = weakref.finalize(self, _kill, process, self._owner)
        try:
            first = self._replies.get(timeout=_START)
        except queue.Empty:
            first = None
        if first is None:
            self._end()
            raise OSError(f"the process did not start: {' '.join(command)}")

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _read(stream: IO[str], replies: queue.SimpleQueue[Any]) -> None:
    """Pass lines on, and ``None`` at the end."""
    with stream:
        for line in stream:
            replies.put(line)
    replies.put(None)


def _kill(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
