"""What a program waits for of a language model."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

from ...inference.cost import count


class CountedRequest:
    """A step of the lanes of one program, whose share of the cost is counted where the program counts (a ``Request``).

    :param service: samples it together with others.
    :param int lanes: of the step.
    """

    def __init__(self, service: Any, lanes: int) -> None:
        self.service, self.lanes = service, lanes
        self.finished = False
        self.error: BaseException | None = None
        self._variables = copy_context()  # the program's

    def fail(self, error: BaseException) -> None:
        self.error, self.finished = error, True

    def charge(self, seconds: float, passes: int = 1) -> None:
        """Count forward passes of which these seconds are the program's share."""
        self._variables.run(count, lm_forwards=passes, lm_seconds=seconds)
