"""From exceptions to one line and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

BAD_INPUT = 2
AUDIT_FAILED = 1
INTERRUPTED = 130


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """What the user can mend becomes one line on stderr; every other exception is a defect and keeps its traceback.

    :param bool verbose: show the traceback of those as well.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        _leave(error, "error", BAD_INPUT, verbose)
    except AssertionError as error:
        from ..inference import AuditError

        if not isinstance(error, AuditError):
            raise
        _leave(error, "audit failed", AUDIT_FAILED, verbose)
    except KeyboardInterrupt as error:
        _leave(error, "interrupted", INTERRUPTED, verbose)


def _leave(error: BaseException, title: str, code: int, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
    message = " ".join(str(error).split())
    typer.secho(f"{title}: {message}" if message else title, fg=typer.colors.RED, err=True)
    raise typer.Exit(code) from error
