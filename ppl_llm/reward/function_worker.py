"""The process in which functions of a user's file are called, run by ``WorkerProcess``; imports nothing of this package.

Reads one JSON request ``[kind, timeout, [file, function, *arguments]]`` per line from standard input and writes one JSON reply per line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=8)
def module(file: str) -> Any:
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Refused("is in no Python file")
    made = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(made)
    except Exception as error:
        raise Refused(f"is in a file that cannot be run: {type(error).__name__}: {error}") from error
    return made


class Refused(Exception):
    """A function that is not there, or fails."""


def answer(kind: str, file: str, function: str, *arguments: str) -> dict[str, Any]:
    found = getattr(module(file), function, None)
    if not callable(found):
        raise Refused(f"is not there: the file has no function {function!r}")
    if kind == "check":
        return {"value": None}
    try:
        value = found(*arguments)
    except Exception as error:
        raise Refused(f"fails with {type(error).__name__}: {error}, given {arguments[-1][-80:]!r}") from error
    if value is None or isinstance(value, bool | str):
        return {"value": value}
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise Refused(f"must give a bool, a number or a text, got {value!r:.100}") from error
    return {"nan": True} if number != number else {"value": number}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(replies.fileno(), False)
    os.dup2(2, 1)  # nothing but replies may reach the reader
    own = os.getpid()

    def reply(result: Any) -> None:
        replies.write(json.dumps(result) + "\n")
        replies.flush()

    reply("ready")
    for line in sys.stdin:
        kind, _, values = json.loads(line)
        try:
            found = answer(kind, *values)
        except Refused as refusal:
            found = {"error": str(refusal)}
        except SystemExit as error:
            found = {"error": f"ends its process (exit {error.code})"}
        if os.getpid() != own:  # a child that a function has forked comes back here as well
            os._exit(0)
        reply(found)
    os.killpg(0, signal.SIGKILL)  # the reader is gone: so is all that the functions have started


if __name__ == "__main__":
    main()
