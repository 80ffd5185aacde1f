"""What a program waits for where the work of several programs is done at once."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any


class SharedRequest:
    """Work of one program, done together with that of others (a ``Request``).

    :param service: does it.
    :param int sequences: rows of the batch that it takes up at present.
    """

    def __init__(self, service: Any, sequences: int = 0) -> None:
        self.service, self.sequences = service, sequences
        self.finished = False
        self.error: BaseException | None = None
        self._variables = copy_context()  # the program's

    def fail(self, error: BaseException) -> None:
        self.error, self.finished = error, True

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call a function as the program would: costs are counted where the program counts."""
        return self._variables.run(function, *arguments, **keywords)
