"""A gateway with the demo models on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx

from ppl_llm import TransformersLM, TransformersPRM
from ppl_llm.gateway import Gateway, GatewayServer, Keys, Limits, Served

PATIENCE = 120.0
"""Seconds after which something that does not come is a failure."""

PROBLEM = "Start with 15. First: increase it by 1. Second: take away 8. Third: add 3. What is the final number?"
ENDLESS = "demo:suffix-mh:iterations=10000"
"""A method that would take hours."""


@cache
def models() -> tuple[Any, Any]:
    return TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")


def gateway(**limits: Any) -> Gateway:
    lm, prm = models()
    return Gateway(Served("demo", lm, prm, {"max_tokens_completion": 1024}), limits=Limits(**limits))


class Running:
    """A server that is up.

    :ivar str url: of its root.
    """

    def __init__(self, gateway: Gateway, server: GatewayServer) -> None:
        self.gateway, self.server, self.url = gateway, server, server.address
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def chat(self, problem: str = PROBLEM, **fields: Any) -> httpx.Response:
        body = {"model": "demo:smc-4", "messages": [{"role": "user", "content": problem}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def idle(self) -> bool:
        return self.gateway.dispatcher.active == 0


@contextmanager
def running(keys: Keys | None = None, served: Gateway | None = None, **limits: Any) -> Iterator[Running]:
    served = served or gateway(**limits)
    server = GatewayServer(served, port=0, keys=keys)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        until(lambda: server.started)
        up = Running(served, server)
        with up.http:
            yield up
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server does not end"


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.005)
