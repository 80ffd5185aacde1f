"""The way to a server inside the test process, and what can go wrong on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Fault:
    """One thing that can go wrong with a call.

    :ivar str kind: ``status``, ``truncated``, ``dropped``, ``slow``, ``choices`` or ``model``.
    """

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)


class ConnectionDropped(Exception):
    """Raised by the application, turned into the client's own error by :class:`Network`."""


class Network(httpx.AsyncBaseTransport):
    """Carries requests to the application; a connection that it drops looks as it does over a socket."""

    def __init__(self, server: Any) -> None:
        self._inner = httpx.ASGITransport(server)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(timeout):
                return await self._inner.handle_async_request(request)
        except ConnectionDropped:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request) from None
        except TimeoutError:
            raise httpx.ReadTimeout("", request=request) from None
