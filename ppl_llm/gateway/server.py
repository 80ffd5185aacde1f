"""The server's process: listening, signals, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from .app import create_app
from .gateway import Gateway
from .guard import Keys, is_loopback

_CLOSING_SECONDS = 5
"""Between the end of the grace period, when programs are stopped, and the end of connections."""


class GatewayServer(uvicorn.Server):
    """A gateway on a port. At a signal it takes no more requests; those under way have a grace period, after which their clients are told.

    :param Gateway gateway: that answers.
    :param str host: address to listen on.
    :param int port: 0 for any that is free.
    :param Keys keys: bearer keys; none let everybody in.
    :param bound: what :func:`bind` gave for this address, where that was done before.
    :param listening: called with the server's address once it can be reached.
    :param ending: called with the number of programs under way or waiting when the server begins to shut down.
    :ivar str address: such as ``http://127.0.0.1:8000``.
    :raises OSError: if the address cannot be listened on.
    """

    def __init__(
        self,
        gateway: Gateway,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        keys: Keys | None = None,
        bound: socket.socket | None = None,
        listening: Callable[[str], None] = lambda address: None,
        ending: Callable[[int], None] = lambda programs: None,
    ) -> None:
        self._gateway, self._listening, self._ending = gateway, listening, ending
        self._bound = bind(host, port) if bound is None else bound
        self._bound.listen(1024)  # clients that come before the event loop runs wait
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self._bound.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(gateway, keys, is_loopback(host)),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=int(gateway.limits.grace) + _CLOSING_SECONDS,
        )
        super().__init__(config)

    def run_until_stopped(self) -> None:
        """Answer requests until SIGTERM, Ctrl-C or :meth:`stop`."""
        try:
            self.run(sockets=[self._bound])
        finally:
            self._bound.close()
            self._gateway.dispatcher.close()

    def stop(self) -> None:
        """As SIGTERM does. From any thread."""
        self._gateway.dispatcher.draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Unlike uvicorn's own it does not have the signal raised again at the end: a server that was told to end has ended well.
        self.force_exit = self.should_exit
        self.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending(self._gateway.dispatcher.active)
        timer = asyncio.get_running_loop().call_later(self._gateway.limits.grace, self._gateway.dispatcher.stop_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before models are loaded.

    :raises OSError: if that is not possible, naming it.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port") from error
    return bound
