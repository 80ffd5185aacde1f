"""Functions of Python files that a user names."""

from __future__ import annotations

import hashlib
import logging
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..answers.worker_process import WorkerProcess

_log = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("function_worker.py")
SECONDS = 30.0
"""That a call may take."""


class PythonFunction:
    """A function of a file, called in a process of its own, which is ended with all that it has started where a call takes too long.

    What the function prints is dropped. It runs with the rights and the network of its user: the file is the user's.

    :param str name: ``FILE.py:function``.
    :param str what: it is, for messages: ``verifier``.
    :param float seconds: for a call.
    :raises OSError: if there is no such file.
    :raises ValueError: if it does not hold the function, or cannot be run.
    """

    def __init__(self, name: str, what: str, seconds: float = SECONDS) -> None:
        self.name, self.what = name, what
        file, _, self._function = name.rpartition(":")
        self._path = Path(file).expanduser()
        if not self._path.is_file():
            raise OSError(f"there is no file {file!r} with a {what}; give FILE.py:function")
        self._process = WorkerProcess(_WORKER, seconds)
        self._ask("check")

    @property
    def __name__(self) -> str:
        """With a digest of the file, by which a run that is resumed is told from one with another function of the same name."""
        return f"{self.name} ({file_digest(self._path)})"

    def __call__(self, *arguments: str) -> Any:
        """What the function gives: a bool, a number, a text or ``None``.

        :raises TimeoutError: where it gives nothing in time, or its process ends.
        :raises ValueError: where it raises, or gives something else.
        """
        return self._ask("call", *arguments)

    def _ask(self, kind: str, *arguments: str) -> Any:
        try:
            reply = self._process.ask(kind, str(self._path), self._function, *arguments)
        except TimeoutError as error:
            about = f" about {arguments[-1][-60:]!r}" if arguments else ""
            raise TimeoutError(f"the {self.what} {self.name} said nothing{about}: {error}") from error
        if "error" in reply:
            raise ValueError(f"the {self.what} {self.name} {reply['error']}")
        return math.nan if reply.get("nan") else reply["value"]


def python_function(name: str, what: str) -> PythonFunction:
    """A function of a file, in one process for all who ask for it while the file is as it is: the check of a name before a run asks, and
    so does the run, and what the file imports may take long.

    :param str name: ``FILE.py:function``.
    :param str what: it is, for messages.
    """
    path = Path(name.rpartition(":")[0]).expanduser()
    return _started(name, what, path.resolve(), path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _started(name: str, what: str, path: Path, changed: int) -> PythonFunction:
    return PythonFunction(name, what)


def file_digest(path: Path) -> str:
    """Of what a file holds."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def or_wrong(function: PythonFunction) -> Any:
    """A verifier: an answer about which the function says nothing in time, or over which its process ends, is wrong, with a warning."""

    @lru_cache(maxsize=65536)  # one verdict for an answer, whatever the time it took
    def verdict(problem: str, answer: str) -> Any:
        try:
            return function(problem, answer)
        except TimeoutError as error:
            _log.warning("%s; it counts as wrong", error)
            return False

    verdict.__name__ = verdict.__qualname__ = function.__name__
    return verdict
