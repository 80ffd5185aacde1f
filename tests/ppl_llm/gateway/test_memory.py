"""What a server keeps after the same load as before: nothing more. Objects are counted; how much of its memory the C library gives back is
its own affair."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from typing import Any

import httpx
import pytest
import torch

from ppl_llm.gateway.dispatch import Dispatcher, Runs
from ppl_llm.gateway.pages import Pages
from tests.helpers.gateway import ENDLESS, Running, models, running, until

OWN = ("ppl_llm.", "asyncio.", "_asyncio.", "concurrent.futures.", "threading.", "starlette.", "fastapi.", "uvicorn.", "_contextvars.")


def load(server: Running) -> None:
    """Everything that a request can come to."""
    for seed, model in enumerate(("demo:smc-2", "demo:best-of-n-2", "demo:self-consistency-2")):
        for stream in (False, True):
            assert server.chat(model=model, seed=seed, stream=stream, max_tokens=8).status_code == 200
    assert server.chat(temperature="hot").status_code == 400
    assert server.chat(model="demo:smc-64", ppl={"deadline": 0.001}).status_code == 504
    assert server.http.get("/runs/nothing").status_code == 404
    with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as opened:
        assert next(opened.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=body(), timeout=0.3)
    until(server.idle)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": ENDLESS, "messages": [{"role": "user", "content": "7 and 8"}], **fields}


def kept() -> Counter[str]:
    """Objects by type, once the KV caches, which ``cache_bytes`` bounds, are released."""
    until(lambda: not any(thread.name == "ppl_llm program" for thread in threading.enumerate()))
    for model in models():
        model.release_caches()
    gc.collect()
    names = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    found = Counter({name: number for name, number in names.items() if name.startswith(OWN)})
    found["tensors"] = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    return found


def test_the_same_load_leaves_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third time on; a server that forgets to forget its requests, or its pages, is noticed."""
    with running(concurrent=4, queue=8, runs=3) as server:
        load(server)
        load(server)
        before = kept()
        load(server)
        until(lambda: not kept() - before)  # handles of the event loop's clock come and go
        monkeypatch.setattr(Dispatcher, "finish", lambda self, runs: Runs.close(runs))
        monkeypatch.setattr(Pages, "_clean", lambda self: None)
        load(server)
        found = kept() - before
        assert found["ppl_llm.gateway.dispatch.Runs"] >= 6 and found["ppl_llm.gateway.pages._Page"] == 6, found
