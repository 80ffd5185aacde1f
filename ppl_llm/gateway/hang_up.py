"""Clients that go away before their answer is ready, and streams to those that stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]


class ClientGone(Exception):
    """Nobody reads the answer."""


class HangUp:
    """Notices when a client hangs up. Make it after the request's body was read.

    :param receive: of the ASGI server.
    """

    def __init__(self, receive: Receive) -> None:
        self._gone = asyncio.ensure_future(_until_gone(receive))

    async def race(self, awaitable: Awaitable[T]) -> T:
        """
        :raises ClientGone: if the client hangs up before this is done, which is cancelled then.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def close(self) -> None:
        self._gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events.

    :param source: of the events; its exceptions end the stream.
    :param HangUp hang_up: of the client.
    :param close: called at the end, whatever it is.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncIterator[bytes], hang_up: HangUp, close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source, self._hang_up, self._close = source, hang_up, close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while chunk := await self._hang_up.race(_next(self._source)):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGone, OSError):
            pass
        finally:
            self._close()


async def _next(source: AsyncIterator[bytes]) -> bytes:
    """Empty at the end."""
    return await anext(source, b"")
