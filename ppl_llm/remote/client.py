"""Requests to a server: many at once, each repeated until it succeeds or cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import time
import weakref
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from .address import Address
from .api_key import DEFAULT_VARIABLE, ApiKey
from .background import BackgroundLoop
from .errors import MalformedReply, ServerError, TransientError

if TYPE_CHECKING:  # at run time on first use: the extra `remote` is optional
    import httpx
    import tenacity

T = TypeVar("T")

_CONNECT_SECONDS = 10.0
_MAX_WAIT_SECONDS = 30.0
_MAX_TOLD_SECONDS = 300.0
"""Longest wait that a server may ask for with ``Retry-After``."""
_SHOWN = 300
"""Characters of a server's message that are shown."""

_log = logging.getLogger(__name__)


class ServerClient:
    """Connections to a server, reused between requests, from ordinary code.

    A request is repeated on 408, 429, 5xx, a lost connection, a timeout and an answer that is cut short or malformed; any other refusal
    is final. Ctrl-C cancels the requests under way, which tells the server to stop working on them. The API key is read from the
    environment for each request and is in no attribute, message or pickle.

    :param str base_url: e.g. ``http://host:8000/v1``.
    :param str api_key_env: name of the environment variable that holds the key, if the server wants one.
    :param float timeout: seconds that the server may be silent.
    :param int max_attempts: tries of each request.
    :param float backoff: seconds before the second try; doubled, with jitter, before each further one, up to 30.
        What the server asks for with ``Retry-After``, in seconds or as a date, is waited for, up to 300 seconds.
    :param int concurrency: requests under way at once.
    :param transport: an httpx transport in place of the network.
    :raises ImportError: without the extra ``remote``.
    :raises ValueError: for an address or limits that make no sense.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str = DEFAULT_VARIABLE,
        timeout: float = 300.0,
        max_attempts: int = 8,
        backoff: float = 0.5,
        concurrency: int = 64,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if find_spec("httpx") is None or find_spec("tenacity") is None:
            raise ImportError('models on a server need httpx and tenacity: pip install "ppl-llm[remote]"')
        for name, value in (("max_attempts", max_attempts), ("concurrency", concurrency)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not timeout > 0 or not backoff >= 0:
            raise ValueError(f"timeout must be positive and backoff not negative, got {timeout!r} and {backoff!r}")
        self.address = Address.parse(base_url)
        self.timeout, self.max_attempts, self.backoff, self.concurrency = timeout, max_attempts, backoff, concurrency
        self.key = ApiKey(api_key_env)
        self.retries = 0
        self._transport = transport
        self._jitter = random.Random(0)  # spreads clients out in time; no result depends on it
        self._pid = -1

    def get(self, url: str, max_attempts: int | None = None) -> Any:
        """The JSON at ``url``.

        :raises ServerError: if there is none, even after ``max_attempts``.
        """
        http, loop = self._connection()
        return loop.run(self._request(http, "GET", url, None, lambda reply: reply, max_attempts or self.max_attempts))

    def post(self, url: str, bodies: Sequence[dict[str, Any]], read: Callable[[int, Any], T]) -> list[T]:
        """Send all bodies at once.

        :param read: makes of the number of a body and the reply to it what is wanted; :class:`MalformedReply` asks for another attempt.
        :returns: in the order of the bodies.
        :raises ServerError: of the first request that failed for good; the others are cancelled.
        """
        http, loop = self._connection()
        return loop.run(self._post(http, url, bodies, read))

    async def _post(self, http: httpx.AsyncClient, url: str, bodies: Sequence[dict[str, Any]], read: Callable[[int, Any], T]) -> list[T]:
        def reader(i: int) -> Callable[[Any], T]:
            return lambda reply: read(i, reply)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._request(http, "POST", url, body, reader(i), self.max_attempts)) for i, body in enumerate(bodies)
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _request(
        self, http: httpx.AsyncClient, method: str, url: str, body: dict[str, Any] | None, read: Callable[[Any], T], max_attempts: int
    ) -> T:
        import tenacity

        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(max_attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(TransientError),
            before_sleep=self._note_retry,
            sleep=asyncio.sleep,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                async with self._permits:
                    return read(await self._attempt(http, method, url, body, attempt.retry_state.attempt_number))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _attempt(self, http: httpx.AsyncClient, method: str, url: str, body: dict[str, Any] | None, number: int) -> Any:
        import httpx

        tries = f" (attempt {number})" if number > 1 else ""
        try:
            response = await http.request(method, url, json=body)
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise TransientError(self.key.scrub(f"{url} did not answer: {type(error).__name__} {error}".rstrip() + tries)) from None
        except httpx.HTTPError as error:
            raise ServerError(self.key.scrub(f"{url} cannot be asked: {type(error).__name__} {error}")) from None
        status = response.status_code
        if status in (408, 429) or status >= 500:
            raise TransientError(f"{url} answered HTTP {status}: {self._message(response)}{tries}", status, _retry_after(response))
        if status != 200:
            raise ServerError(f"{url} answered HTTP {status}: {self._message(response)}{self._hint(status)}", status)
        try:
            return response.json()
        except ValueError:
            raise MalformedReply(f"{url} answered with broken JSON of {len(response.content)} bytes{tries}", status) from None

    def _message(self, response: httpx.Response) -> str:
        """What a server says about its refusal."""
        text = response.text
        try:
            found = json.loads(text)
            error = found.get("error", found)
            text = error if isinstance(error, str) else str(error.get("message") or error.get("detail") or text)
        except (ValueError, AttributeError):
            pass
        return self.key.scrub(" ".join(text.split()))[:_SHOWN] or "no message"

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return f"; the API key is read from the environment variable {self.key.variable}"
        return "; see whether the address and the model's name are right" if status == 404 else ""

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = getattr(error, "retry_after", None) or 0.0
        own: float = self.backoff * 2 ** (state.attempt_number - 1) * self._jitter.uniform(0.5, 1.0)
        return max(min(_MAX_WAIT_SECONDS, own), min(_MAX_TOLD_SECONDS, asked))

    def _note_retry(self, state: tenacity.RetryCallState) -> None:
        self.retries += 1
        error = state.outcome.exception() if state.outcome is not None else None
        _log.warning("%s; trying again in %.1f s", error, state.next_action.sleep if state.next_action else 0.0)

    def _connection(self) -> tuple[httpx.AsyncClient, BackgroundLoop]:
        """The connections of this process: a fork must not use its parent's."""
        import httpx

        loop = BackgroundLoop.get()
        if self._pid != os.getpid():
            self._http = httpx.AsyncClient(
                auth=self.key,
                timeout=httpx.Timeout(self.timeout, connect=min(_CONNECT_SECONDS, self.timeout), pool=None),
                limits=httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
                transport=self._transport,
            )
            self._permits = asyncio.Semaphore(self.concurrency)
            self._pid = os.getpid()
            weakref.finalize(self, _close, self._http, loop)
        return self._http, loop

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_http", "_permits", "_transport")}
        return kept | {"_pid": -1, "_transport": None}

    def __repr__(self) -> str:
        return f"ServerClient({self.address.api!r})"


def _close(http: httpx.AsyncClient, loop: BackgroundLoop) -> None:
    if loop.pid == os.getpid() and loop.loop.is_running():
        asyncio.run_coroutine_threadsafe(http.aclose(), loop.loop)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait, from a number of them or a date (RFC 9110)."""
    told = response.headers.get("retry-after", "").strip()
    try:
        if math.isfinite(seconds := float(told)):
            return max(0.0, seconds)
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())
