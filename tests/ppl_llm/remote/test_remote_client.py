"""Requests to servers: what is repeated and what is not, order, limits, keys, interruption."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from ppl_llm.remote.api_key import ApiKey
from ppl_llm.remote.client import ServerClient
from ppl_llm.remote.errors import ServerError, TransientError

URL = "http://fake/v1"


class Script(httpx.AsyncBaseTransport):
    """Answers by a script: a status, an exception to raise, or bytes, for each call; then echoes the body of the request."""

    def __init__(self, *script: Any, delay: float = 0.0, headers: dict[str, str] | None = None) -> None:
        self.script, self.delay, self.headers = list(script), delay, headers or {}
        self.requests: list[httpx.Request] = []
        self.under_way = self.most = self.cancelled = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else None
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if isinstance(step, Exception):
            raise step
        if isinstance(step, int):
            return httpx.Response(step, json={"error": {"message": f"because of {step}"}}, headers=self.headers)
        return httpx.Response(200, content=step if isinstance(step, bytes) else await request.aread())


def client(transport: Script, **options: Any) -> ServerClient:
    return ServerClient(URL, transport=transport, **{"backoff": 0.0, **options})


def post(of: ServerClient, number: int = 1) -> list[Any]:
    return of.post(f"{URL}/completions", [{"number": i} for i in range(number)], lambda i, reply: (i, reply["number"]))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_statuses_that_are_tried_again(status: int) -> None:
    transport = Script(status, status)
    assert post(client(transport)) == [(0, 0)]
    assert len(transport.requests) == 3


FAILURES = [
    httpx.RemoteProtocolError("Server disconnected"),
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.ReadTimeout(""),
    httpx.ConnectTimeout(""),
    b'{"number": ',
    b"",
    b"<html>busy</html>",
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__ + str(failure)[:12])
def test_failures_that_are_tried_again(failure: Any) -> None:
    transport = Script(failure)
    assert post(client(transport)) == [(0, 0)]
    assert len(transport.requests) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 413, 422])
def test_statuses_that_are_final(status: int) -> None:
    transport = Script(status)
    with pytest.raises(ServerError, match=f"HTTP {status}: because of {status}") as caught:
        post(client(transport))
    assert len(transport.requests) == 1 and caught.value.status == status and not isinstance(caught.value, TransientError)


def test_the_number_of_tries_is_limited() -> None:
    transport = Script(*[503] * 10)
    of = client(transport, max_attempts=4)
    with pytest.raises(ServerError, match=r"HTTP 503: because of 503 \(attempt 4\)"):
        post(of)
    assert len(transport.requests) == 4 and of.retries == 3


def test_waiting_grows_and_obeys_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    real = asyncio.sleep
    monkeypatch.setattr("ppl_llm.remote.client.asyncio.sleep", lambda s: sleep(s) if s else real(0))
    post(client(Script(500, 500, 500, 500), backoff=1.0))
    assert [0.5 * 2**k <= wait <= 2**k for k, wait in enumerate(waits)] == [True] * 4
    waits.clear()
    post(client(Script(429, headers={"retry-after": "7"}), backoff=0.5))
    post(client(Script(429, headers={"retry-after": "3600"}), backoff=0.5))
    post(client(Script(429, headers={"retry-after": "soon"}), backoff=0.5))
    assert waits[:2] == [7.0, 300.0] and waits[2] <= 0.5
    waits.clear()
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    post(client(Script(429, headers={"retry-after": in_a_minute}), backoff=0.5))
    assert 55 < waits[0] <= 60


def test_replies_are_in_the_order_of_requests_and_the_number_under_way_is_limited() -> None:
    transport = Script(delay=0.005)
    assert post(client(transport, concurrency=3), 20) == [(i, i) for i in range(20)]
    assert transport.most == 3


def test_connections_are_reused() -> None:
    of = client(Script())
    post(of, 5)
    first = of._http
    post(of, 5)
    assert of._http is first and first._transport is of._transport


def test_the_first_final_refusal_cancels_the_rest() -> None:
    transport = Script(400, delay=0.02)
    with pytest.raises(ServerError, match="HTTP 400"):
        post(client(transport, concurrency=50), 50)
    assert len(transport.requests) == 50 and transport.under_way == 0


def test_a_silent_server_is_a_timeout() -> None:
    class Silent(Script):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            await asyncio.sleep(request.extensions["timeout"]["read"])
            raise httpx.ReadTimeout("", request=request)

    transport = Silent()
    with pytest.raises(ServerError, match=r"did not answer: ReadTimeout \(attempt 2\)"):
        post(client(transport, timeout=0.01, max_attempts=2))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a thread")
def test_an_interrupt_cancels_what_is_under_way() -> None:
    transport = Script(delay=60)
    of = client(transport, concurrency=10)
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals reach the main thread only")

    def interrupt() -> None:
        while transport.under_way < 8:
            time.sleep(0.005)
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    began = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            post(of, 8)
    finally:
        signal.signal(signal.SIGINT, before)
    assert transport.cancelled == 8 and transport.under_way == 0 and time.perf_counter() - began < 30
    transport.delay = 0.0
    assert post(of, 2) == [(0, 0), (1, 1)], "the client still works"


# Keys -----------------------------------------------------------------------------------------------------------------------------------

SECRET = "sk-do-not-show-me-1234567890"


def test_the_key_is_sent_and_is_nowhere_else(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    told = json.dumps({"error": {"message": f"bad key {SECRET}"}}).encode()

    class Indiscreet(Script):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return httpx.Response(503 if len(self.requests) < 3 else 401, content=told)

    transport = Indiscreet()
    of = client(transport, api_key_env="MY_KEY")
    with pytest.raises(ServerError, match=r"bad key \*\*\*; the API key is read from the environment variable MY_KEY") as caught:
        post(of)
    assert [request.headers["authorization"] for request in transport.requests] == [f"Bearer {SECRET}"] * 3
    shown = [caplog.text, repr(of), str(of.__dict__), repr(of.key), str(caught.value), repr(caught.value), repr(transport.requests)]
    assert all(SECRET not in text for text in shown) and len(caplog.records) >= 2
    saved = pickle.dumps(of)
    assert SECRET.encode() not in saved
    again = pickle.loads(saved)
    again._transport = Script()
    assert post(again) == [(0, 0)], "a loaded client reads the key again"
    assert again._transport.requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_without_a_key_no_header_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPL_LLM_API_KEY", raising=False)
    transport = Script()
    post(client(transport))
    assert "authorization" not in transport.requests[0].headers
    monkeypatch.setenv("PPL_LLM_API_KEY", "two words")
    with pytest.raises(ValueError, match="PPL_LLM_API_KEY holds characters"):
        post(client(transport))
    assert ApiKey("X").scrub("text") == "text"
