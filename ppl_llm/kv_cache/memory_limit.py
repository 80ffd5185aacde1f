"""Memory that runs out: half as much at a time from then on, with one warning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory")
REMEDY = (
    "give the model less memory to hold (dtype=torch.bfloat16, a quantised or smaller model), spread it over several devices "
    "(device_map='auto'), or lower cache_bytes or max_length"
)


class CacheTooLarge(MemoryError):
    """Keys and values cannot grow: fewer tokens in a forward pass would not help, fewer sequences would."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own one for accelerators, that of its allocator on the CPU, or Python's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS))


class Attempt:
    """Work on a batch: ``with attempt as batch:``. Running out of memory ends the block and is kept as ``error``; others are raised."""

    def __init__(self, batch: slice) -> None:
        self.batch = batch
        self.error: BaseException | None = None

    def __enter__(self) -> slice:
        return self.batch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.error = error
        return True


class BatchLimit:
    """How much fits at a time, as found out.

    :param str unit: what is counted, e.g. ``sequences``.
    :ivar largest: bound on a batch, ``None`` while none failed.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._said = False
        self.largest: int | None = None

    def allowed(self, wanted: int) -> int:
        """The batch to try where ``wanted`` remain."""
        return wanted if self.largest is None else min(wanted, self.largest)

    def in_batches(self, total: int, relieve: Callable[[], None]) -> Iterator[Attempt]:
        """Attempts at batches that fit, until all of ``total`` are done; one that runs out of memory is repeated on half of its batch.

        :param relieve: releases what is not needed, before that.
        :raises MemoryError: if a batch of one does not fit.
        """
        begin = 0
        while begin < total:
            attempt = Attempt(slice(begin, begin + self.allowed(total - begin)))
            yield attempt
            if attempt.error is None:
                begin = attempt.batch.stop
            else:
                relieve()
                self.halve(attempt.batch.stop - begin, attempt.error)
                attempt.error = None  # its traceback holds the tensors of the failed attempt

    def halve(self, failed: int, error: BaseException) -> None:
        """Never again as many as ``failed``.

        :raises MemoryError: if that was a batch of one.
        """
        if failed <= 1:
            raise MemoryError(f"out of memory with {failed} of {self._unit} at a time: {REMEDY}. {_first_line(error)}") from error
        self.largest = failed // 2
        if not self._said:
            _log.warning(
                "out of memory with %d %s at a time; continuing with %d, and half of that whenever it happens again. Results stay the "
                "same, speed does not: %s. %s",
                *(failed, self._unit, self.largest, REMEDY, _first_line(error)),
            )
        self._said = True


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
