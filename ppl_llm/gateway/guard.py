"""What every request passes before anything reads it: where it comes from, whether it may, and how long it is."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .errors import ApiError

Send = Callable[[Any], Awaitable[None]]

KEY_VARIABLE = "PPL_LLM_SERVE_KEYS"
"""Environment variable with keys, separated by white space or commas."""

OPEN = ("/", "/health")
"""Paths that need no key. Links to viewer pages need none either, as nobody can guess them."""

_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY")]


class Keys:
    """Bearer keys, of which only hashes are kept.

    :param keys: none at all lets everybody in.
    :raises ValueError: for a key that no header can hold.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        found = list(keys)
        if not all(key.isascii() and key.isprintable() and " " not in key and len(key) >= 8 for key in found):
            raise ValueError("a key must have at least 8 printable ASCII characters and no space")
        self._hashes = [_hash(key) for key in found]

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """Of a file, one a line, and of the environment variable ``PPL_LLM_SERVE_KEYS``. Lines that begin with ``#`` are comments.

        :raises ValueError: for a file without a key.
        :raises OSError: if it cannot be read.
        """
        keys = re.split(r"[\s,]+", os.environ.get(KEY_VARIABLE, ""))
        if path is not None:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            own = [line for line in lines if line and not line.startswith("#")]
            if not own:
                raise ValueError(f"the file {path} holds no key; put one on each line")
            keys += own
        return cls(key for key in keys if key)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accept(self, authorization: str | None) -> bool:
        """Whether a header ``Bearer KEY`` holds one of the keys; as fast for a wrong one as for a right one, whichever it is."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return not self._hashes or (any(matches) and scheme.lower() == "bearer")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


class Guard:
    """ASGI middleware: keys, the length of bodies, and the names by which a server on the loopback interface may be addressed.

    A page of another site that a person on this machine looks at can send requests here; it cannot name a loopback host, nor send JSON
    without asking first.

    :param app: behind it.
    :param Keys keys: that are accepted.
    :param int body_bytes: longest body.
    :param bool loopback: whether the server listens on the loopback interface only.
    """

    def __init__(self, app: Any, keys: Keys, body_bytes: int, loopback: bool) -> None:
        self._app, self._keys, self._body_bytes, self._loopback = app, keys, body_bytes, loopback

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safe(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        try:
            self._check(scope["path"], scope["method"], Headers(scope=scope))
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_safe)
            return
        await self._app(scope, receive, send_safe)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if self._loopback and not is_loopback(host):
            raise ApiError(403, "this server answers to the names of the loopback interface only", code="wrong_host")
        if path not in OPEN and not path.startswith("/runs/") and not self._keys.accept(headers.get("authorization")):
            message = "a key is needed: Authorization: Bearer KEY" if "authorization" not in headers else "Incorrect API key provided"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self._body_bytes:
            raise too_long(self._body_bytes)
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: Content-Type: application/json", code="unsupported_media_type")


def too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most} bytes", code="body_too_large")
