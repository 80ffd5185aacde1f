"""The routes of the server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from .errors import ApiError
from .gateway import Gateway, log_failure
from .guard import Guard, Keys, too_long
from .hang_up import ClientGone, EventStream, HangUp

_log = logging.getLogger(__name__)

_STARTED = int(time.time())
_BODY_SECONDS = 30.0
"""In which a request's body must have come."""
_GONE = 499
"""Status in the log of a request whose client has hung up."""
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
"""Of viewer pages, which allow only their own style and script by their hashes; a sandbox keeps them from this server's origin."""


def create_app(gateway: Gateway, keys: Keys | None = None, loopback: bool = True) -> Any:
    """The ASGI application.

    :param Gateway gateway: what answers.
    :param Keys keys: bearer keys; none let everybody in.
    :param bool loopback: whether the server listens on the loopback interface only, and answers to its names only.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        gateway.dispatcher.close()

    app = FastAPI(title="ppl_llm", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    playground, policy = _playground()

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(playground, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> Response:
        draining = gateway.dispatcher.draining
        told = {"status": "draining" if draining else "ok", "programs": gateway.dispatcher.active}
        return JSONResponse(told, 503 if draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in gateway.models()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        gateway.catalogue.find(name)
        return JSONResponse(_model(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(gateway, request, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(gateway, request, chat=False)

    @app.get("/runs/{number}")
    async def run(number: str) -> Response:
        found = gateway.pages.get(number)
        if found is None:
            return PlainTextResponse("There is no such run, or its page has expired.\n", 404)
        return HTMLResponse(found, headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "private, no-store"})

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        known = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}", code="unknown_url")
        return JSONResponse(known.body, known.status, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log_failure(error)
        return JSONResponse(ApiError(500, "the server failed", kind="server_error").body, 500)

    guarded = Guard(app, keys or Keys(), gateway.limits.body_bytes, loopback)
    return _Counted(guarded, gateway)


async def _answer(gateway: Gateway, request: Request, chat: bool) -> Response:
    body = await _body(request, gateway.limits.body_bytes)
    asked = gateway.read(body, chat)
    runs = gateway.start(asked)
    hang_up = HangUp(request.receive)

    def close() -> None:
        hang_up.close()
        gateway.dispatcher.finish(runs)

    streaming = False
    try:
        if not asked.stream:
            return JSONResponse(await hang_up.race(gateway.answer(asked, runs)))
        source = gateway.stream(asked, runs)
        first = await hang_up.race(anext(source))  # a run that fails at once is an error and no stream
        streaming = True
        return EventStream(_after(first, source), hang_up, close)
    except ClientGone:
        return Response(status_code=_GONE)
    finally:
        if not streaming:
            close()


async def _after(first: bytes, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in source:
        yield chunk


async def _body(request: Request, most: int) -> Any:
    """Decoded JSON.

    :raises ApiError: for a body that is too long, takes too long, or is no JSON.
    """
    try:
        data = await asyncio.wait_for(_data(request, most), _BODY_SECONDS)
    except TimeoutError as error:
        raise ApiError(408, "the body took too long", code="body_timeout", headers={"Connection": "close"}) from error
    try:
        body = json.loads(data, parse_constant=_no_constant)
        if b"\\u" in data:  # half a character, which JSON can write and no text can hold
            json.dumps(body, ensure_ascii=False).encode()
        return body
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is no JSON that can be read", code="invalid_json") from error


async def _data(request: Request, most: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise too_long(most)
    return bytes(data)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "ppl_llm"}


def _playground() -> tuple[str, str]:
    """The page and its policy: nothing but its own script and style runs, and it talks to this server only."""
    text = files(__package__).joinpath("assets", "playground.html").read_text(encoding="utf-8")

    def allowed(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts)

    policy = f"default-src 'none'; connect-src 'self'; img-src data:; style-src {allowed('style')}; script-src {allowed('script')}"
    return text, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class _Counted:
    """ASGI middleware: a line in the log and a count in the metrics for each request. Neither has anything of its text."""

    def __init__(self, app: Callable[..., Any], gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), _GONE

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # answered and logged before; the server would log what it says, too
            if status == _GONE:
                log_failure(error)
        finally:
            route, seconds = _route(scope["path"]), time.perf_counter() - began
            self._gateway.metrics.requests.labels(route, str(status)).inc()
            self._gateway.metrics.seconds.labels(route).observe(seconds)
            _log.info("%s %s %d %.3f s", scope["method"], route, status, seconds)


def _route(path: str) -> str:
    """A path without what clients write into it."""
    if path.startswith("/runs/"):
        return "/runs/ID"
    if path.startswith("/v1/models/"):
        return "/v1/models/NAME"
    return path if path in ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions") else "other"
