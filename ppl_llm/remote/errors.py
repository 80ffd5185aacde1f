"""What can go wrong between here and a server."""

from __future__ import annotations


class ServerError(OSError):
    """A server that cannot be reached, refuses a request, or answers what cannot be used.

    :ivar int status: HTTP status, ``None`` where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TransientError(ServerError):
    """A failure that another attempt may mend: 408, 429, 5xx, a lost connection, a timeout, an answer that is cut short or malformed.

    :ivar float retry_after: seconds that the server asked to wait, ``None`` if it did not.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class MalformedReply(TransientError):
    """An answer with status 200 that does not hold what was asked for."""
