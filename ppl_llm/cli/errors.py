"""From exceptions to one line and an exit code."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer

from .json_log import JsonLog

BAD_INPUT = 2
AUDIT_FAILED = 1
FAILED = 1
ABSTAINED = 3
INTERRUPTED = 130


@contextmanager
def reported(verbose: bool, log: JsonLog | None = None) -> Iterator[None]:
    """What the user can mend becomes one line on stderr; every other exception is a defect and keeps its traceback.

    :param bool verbose: show the traceback of those as well.
    :param JsonLog log: where the line goes as an event instead.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        _leave(error, "error", BAD_INPUT, verbose, log)
    except AssertionError as error:
        from ..inference import AuditError

        if not isinstance(error, AuditError):
            raise
        _leave(error, "audit failed", AUDIT_FAILED, verbose, log)
    except KeyboardInterrupt as error:
        _leave(error, "interrupted", INTERRUPTED, verbose, log)


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library in the words of the command line, where it begins with the name of an option.

    That name becomes its flag, and so does the name of every option with a value: ``rounds=2`` is ``--rounds 2``.

    :param dict flags: by name.
    """
    first = re.match(r"\w+", message)
    if first is None or first[0] not in flags:
        return message
    valued = re.compile(rf"\b({'|'.join(map(re.escape, flags))}) ?= ?(?=\S)")
    return flags[first[0]] + valued.sub(lambda found: f"{flags[found[1]]} ", message[first.end() :])


def _leave(error: BaseException, title: str, code: int, verbose: bool, log: JsonLog | None) -> None:
    if verbose:
        traceback.print_exception(error)
    message = " ".join(str(error).split())
    if log is not None:
        log.event("error", kind=title, message=message, exit_code=code)
    else:
        typer.secho(f"{title}: {message}" if message else title, fg=typer.colors.RED, err=True)
    raise typer.Exit(code) from error
