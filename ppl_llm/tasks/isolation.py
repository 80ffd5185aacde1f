"""Programs that a language model wrote, run where they can do little harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..inference.util.validation import unknown_name

ISOLATIONS = ("namespaces", "limits")

_RUNNER = Path(__file__).with_name("code_runner.py")
_UNSHARE = ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "--")
_STARTING = 30.0
"""Seconds beyond those of the tests."""


@dataclass(frozen=True)
class Limits:
    """What a program may use, and what it is kept from.

    Under ``namespaces`` (Linux 5.12 or newer, with user namespaces that its user may create, and ``unshare`` of util-linux) a program has
    no network, sees no other process, cannot write to any file but those of an empty temporary folder that is gone afterwards, and has no
    capability. It can read what the user can read. That keeps mistakes of a program from doing harm; it is no defence against somebody who
    attacks the kernel.

    Under ``limits`` a program has the network and the files of the user, and only the bounds below hold. That is for machines that are
    closed off as a whole, such as a container without network.

    The kernel bounds the number of processes of every user but root. Those of root are watched, by a process that comes before them where
    it may (``chrt``); where it may not, in some containers, a program that does nothing but fork may outrun it: run as another user there.

    :param str isolation: ``namespaces`` or ``limits``.
    :param float seconds: for each test.
    :param int memory: MiB of address space of a process.
    :param int output: KiB that a test may print.
    :param int processes: at a time.
    :param int disk: MiB of a file, and of all files under ``namespaces``.
    :raises ValueError: for values out of range.
    """

    isolation: str = "namespaces"
    seconds: float = 5.0
    memory: int = 1024
    output: int = 64
    processes: int = 8
    disk: int = 64

    def __post_init__(self) -> None:
        if self.isolation not in ISOLATIONS:
            raise unknown_name("isolation", self.isolation, ISOLATIONS)
        for name in ("seconds", "memory", "output", "processes", "disk"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float if name == "seconds" else int) or not 0 < value < 1e6:
                raise ValueError(f"{name} of a program must be a number above 0, got {value!r}")

    def check(self) -> None:
        """
        :raises ValueError: where this machine does not give the isolation, saying why and what else there is.
        """
        why = _missing(self)
        if why is not None:
            raise ValueError(
                f"programs cannot be run without network and with files read-only here ({why}); run this where user namespaces are "
                "allowed, or, in a container that has no network and no files of value, ask for isolation=limits"
            )

    def run(self, program: str, tests: Sequence[Any]) -> list[str | None]:
        """What is wrong by test, ``None`` for one that passes; fewer than the tests where a program had to be ended.

        :param str program: in Python.
        :param tests: statements in Python to run after the program, or ``{"input": ..., "output": ...}``: what it reads and prints.
        :raises ValueError: where this machine does not give the isolation.
        """
        self.check()
        found = self._ask(program, tests)
        if "found" not in found:
            raise ValueError(f"the process that runs programs failed: {found['refused']}")
        results: list[str | None] = found["found"]
        return results

    def _ask(self, program: str, tests: Sequence[Any]) -> dict[str, Any]:
        enclosed = self.isolation == "namespaces"
        request = {**asdict(self), "enclosed": enclosed, "program": program, "tests": list(tests)}
        prefix = [*_ahead(), *([shutil.which("unshare") or "unshare", *_UNSHARE] if enclosed else [])]
        # -I: nothing of the environment or the present folder changes what is imported.
        command = [*prefix, sys.executable, "-I", "-W", "ignore", str(_RUNNER)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # no keys
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(command, **pipes, env=environment, cwd=folder, start_new_session=True)
            try:
                reply, complaint = process.communicate(json.dumps(request).encode(), self.seconds * max(1, len(tests)) + _STARTING)
            except subprocess.TimeoutExpired:
                return {"refused": "it did not end its tests in time"}
            finally:
                _end(process, enclosed)
        try:
            found: dict[str, Any] = json.loads(reply)
        except json.JSONDecodeError:
            lines = complaint.decode(errors="replace").strip().splitlines()
            return {"refused": lines[-1] if lines else f"it ended with exit {process.returncode}"}
        return found


DEFAULT_LIMITS = Limits()


def _end(process: subprocess.Popen[bytes], enclosed: bool) -> None:
    """End the process, and with it all that it started: of a namespace by the kernel, else by the process itself."""
    if process.poll() is None:
        if not enclosed:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@lru_cache(maxsize=1)
def _ahead() -> list[str]:
    """What lets the process that watches come before those it watches: the kernel bounds the processes of every user but root."""
    command = [shutil.which("chrt") or "", "--fifo", "1"]
    if not command[0] or os.geteuid() != 0:
        return []
    allowed = subprocess.run([*command, sys.executable, "-I", "-S", "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return command if allowed.returncode == 0 else []


@lru_cache(maxsize=16)
def _missing(limits: Limits) -> str | None:
    """Why programs cannot be run so on this machine."""
    if not sys.platform.startswith("linux"):
        return f"programs are run on Linux only, and this is {sys.platform}"
    if limits.isolation == "namespaces" and shutil.which("unshare") is None:
        return "there is no command unshare"
    found = limits._ask("", ["pass"])
    return found.get("refused") or next((f"an empty program fails: {why}" for why in found["found"] if why is not None), None)
