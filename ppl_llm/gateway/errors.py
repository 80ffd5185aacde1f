"""What a client is told when its request cannot be answered, in OpenAI's form; and why programs are stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..inference.concurrent import Stopped


class ApiError(Exception):
    """An answer that is no result.

    :param int status: of HTTP.
    :param str message: for people.
    :param str param: the field of the request that is to blame, such as ``messages[0].role``.
    :param str code: for programs.
    :param str kind: OpenAI's ``type``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_value(param: str, message: str) -> ApiError:
    """A field whose value makes no sense or is out of range."""
    return ApiError(400, message, param=param, code="invalid_value")


def unsupported(param: str, why: str) -> ApiError:
    """A field that means something, which cannot be done here."""
    return ApiError(400, f"{param} is not supported here: {why}", param=param, code="unsupported_parameter")


def draining() -> ApiError:
    return ApiError(503, "this server is shutting down", code="shutting_down", kind="server_error", headers={"Retry-After": "5"})


class DeadlinePassed(Stopped):
    """A request has taken as long as it may. What it has found so far is its answer, if there is any."""


class HungUp(Stopped):
    """Nobody waits for the answer any more."""


class ShuttingDown(Stopped):
    """The grace period after SIGTERM is over."""
