"""The server's process: listening, signals, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from .app import create_app
from .gateway import Gateway
from .guard import Keys, is_loopback

_CLOSING_SECONDS = 5
"""Between the end of the grace period, when programs are stopped, and the end of connections."""


def serve(
    gateway: Gateway,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    keys: Keys | None = None,
    listening: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C. Requests under way then have a grace period to finish; a second signal ends it.

    :param str host: address to listen on.
    :param int port: 0 for any that is free.
    :param Keys keys: bearer keys; none let everybody in.
    :param listening: called with the server's address once it can be reached.
    :raises OSError: if the address cannot be listened on.
    """
    bound = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{bound.getsockname()[1]}"
    grace = gateway.limits.grace
    config = uvicorn.Config(
        create_app(gateway, keys, is_loopback(host)),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(grace) + _CLOSING_SECONDS,
    )
    server = _Server(config, gateway, lambda: listening(address))
    try:
        server.run(sockets=[bound])
    finally:
        bound.close()
        gateway.dispatcher.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port") from error
    return bound


class _Server(uvicorn.Server):
    """Stops taking requests at a signal, and stops programs at the end of the grace period: their clients are told."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway, self._listening = gateway, listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Unlike uvicorn's own it does not have the signal raised again at the end: a server that was told to end has ended well.
        self._gateway.dispatcher.draining = True
        self.force_exit, self.should_exit = self.should_exit, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        dispatcher: Any = self._gateway.dispatcher
        dispatcher.draining = True
        timer = asyncio.get_running_loop().call_later(self._gateway.limits.grace, dispatcher.stop_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
