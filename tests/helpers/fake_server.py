"""An OpenAI-compatible server inside the test process, with vLLM's field names and semantics, which can be told to misbehave.

It shares no code with the library: tokens are drawn one by one with a generator per request, and stop strings are looked for in text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import torch
from torch import Tensor

from tests.helpers.fake_network import ConnectionDropped, Fault, Network

URL = "http://fake/v1"


class FakeServer:
    """The application: ``/v1/models``, ``/v1/completions`` and ``/pooling``.

    :param next_logits: ``[V]`` logits of the token after a list of ids.
    :param tokenizer: for text prompts, texts and stop strings.
    :param faults: called with the number of each completion or pooling call; a :class:`Fault`, or ``None`` to behave.
    :param uniforms: a uniform for a seed and a position, in place of a generator: for exact tests.
    :param pool: ``[L, K]`` outputs of a reward model for a list of ids, before its activation.
    :ivar list calls: bodies of the calls that arrived.
    """

    def __init__(
        self,
        next_logits: Callable[[list[int]], Tensor] | None,
        tokenizer: Any,
        *,
        faults: Callable[[int], Fault | None] = lambda call: None,
        uniforms: Callable[[int, int], float] | None = None,
        pool: Callable[[list[int]], Tensor] | None = None,
        pooler: dict[str, Any] | None = None,
        max_model_len: int | None = 512,
        model: str = "fake",
        processed: bool = False,
        token_ids: bool = True,
        tells_stop: bool = True,
        strips_stop: bool = False,
        echo: bool = True,
        prefix_cache: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.next_logits, self.tokenizer, self.faults, self.uniforms = next_logits, tokenizer, faults, uniforms
        self.pool, self.pooler = pool, pooler or {}
        self.max_model_len, self.model, self.processed = max_model_len, model, processed
        self.token_ids, self.tells_stop, self.strips_stop, self.echo = token_ids, tells_stop, strips_stop, echo
        self.cache: set[tuple[int, ...]] | None = set() if prefix_cache else None
        self.delay = delay
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = self.cancelled = 0
        self._global = torch.Generator().manual_seed(1234)

    def transport(self) -> httpx.AsyncBaseTransport:
        """What a client takes in place of the network."""
        return Network(self)

    # The application ------------------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        status, headers, content = await self._reply(scope["path"], raw)
        await send({"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
        await send({"type": "http.response.body", "body": content})

    async def _reply(self, path: str, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        json_type = {"content-type": "application/json"}
        if path == "/v1/models":
            entry = {"id": self.model, "object": "model", "max_model_len": self.max_model_len, "root": "/no/such/directory"}
            return 200, json_type, json.dumps({"object": "list", "data": [entry]}).encode()
        body = json.loads(raw)
        number = len(self.calls)
        self.calls.append(body)
        fault = self.faults(number)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(3600 if fault is not None and fault.kind == "slow" else self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if fault is not None and fault.kind == "dropped":
            raise ConnectionDropped
        if fault is not None and fault.kind == "status":
            message = {"error": {"message": f"fault {fault.status}", "type": "fault", "code": fault.status}}
            return fault.status, {**json_type, **fault.headers}, json.dumps(message).encode()
        try:
            reply = self._completions(body) if path == "/v1/completions" else self._pooling(body)
        except _Refused as refused:
            return 400, json_type, json.dumps({"error": {"message": str(refused), "type": "BadRequestError", "code": 400}}).encode()
        if fault is not None and fault.kind == "choices":
            entries = reply.get("choices") or reply["data"]
            entries.append(dict(entries[0])) if number % 2 else entries.pop()
        if fault is not None and fault.kind == "model":
            reply["model"] = "another"
        content = json.dumps(reply).encode()
        return 200, json_type, content[: len(content) // 2] if fault is not None and fault.kind == "truncated" else content

    # Completions ----------------------------------------------------------------------------------------------------------------------

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] != self.model:
            raise _Refused(f"The model `{body['model']}` does not exist.")
        given = body["prompt"]
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts = [self._ids(prompt) for prompt in (given if several else [given])]
        cached = [self._cached(prompt) for prompt in prompts]
        if body.get("echo") and body.get("max_tokens") == 0:
            written = [self._scored(prompt) for prompt in prompts]
        else:
            written = [self._written(prompt, body, i) for prompt in prompts for i in range(body.get("n", 1))]
        usage: dict[str, Any] = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 0}
        if self.cache is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": cached[-1]}
        choices = [{"index": i, **choice} for i, choice in enumerate(written)]
        return {"id": "cmpl-1", "object": "text_completion", "model": self.model, "choices": choices, "usage": usage}

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not self.token_ids:
            raise _Refused("prompt must be a string")
        return list(prompt)

    def _cached(self, prompt: list[int]) -> int:
        if self.cache is None:
            return 0
        longest = max((n for n in range(len(prompt)) if tuple(prompt[:n]) in self.cache), default=0)
        self.cache.update(tuple(prompt[:n]) for n in range(1, len(prompt) + 1))
        return longest

    def _scored(self, prompt: list[int]) -> dict[str, Any]:
        each: list[float | None] = [None]
        for k in range(1, len(prompt)):
            each.append(float(self._logits(prompt[:k]).log_softmax(-1)[prompt[k]]))
        details = {"token_logprobs": each, "tokens": [str(i) for i in prompt]} if self.echo else None
        return {"text": self.tokenizer.decode(prompt), "logprobs": details, "finish_reason": "length", "stop_reason": None}

    def _logits(self, ids: list[int]) -> Tensor:
        assert self.next_logits is not None
        return self.next_logits(ids).double()

    def _written(self, prompt: list[int], body: dict[str, Any], index: int) -> dict[str, Any]:
        if self.max_model_len is not None and len(prompt) + body["max_tokens"] > self.max_model_len:
            raise _Refused(f"This model's maximum context length is {self.max_model_len} tokens.")
        seed = body.get("seed")
        generator = self._global if seed is None else torch.Generator().manual_seed(seed + index)
        stops = body.get("stop") or []
        eos = {self.tokenizer.eos_token_id, *body.get("stop_token_ids", [])}
        ids: list[int] = []
        log_probs: list[float] = []
        top: list[dict[str, float]] = []
        text, finish, reason = "", "length", None
        while len(ids) < body["max_tokens"]:
            raw = self._logits(prompt + ids) + self._structured(text, body)
            probs = _warped(raw, body.get("temperature", 1.0), body.get("top_k") or -1, body.get("top_p", 1.0))
            if self.uniforms is not None and seed is not None:
                token = int((probs.cumsum(-1) <= self.uniforms(seed, len(ids))).sum())
            else:
                token = int((probs / torch.empty_like(probs).exponential_(generator=generator)).argmax())
            ids.append(token)
            shown = probs.log() if self.processed else raw.log_softmax(-1)
            log_probs.append(float(shown[token]))
            wanted = {token, *body.get("logprob_token_ids", [])}
            top.append({f"token_id:{i}": float(shown[i]) for i in wanted})
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if token in eos:
                finish = "stop"
                break
            ends = [(text.index(stop) + len(stop), stop) for stop in stops if stop in text]
            if ends:
                end, reason = min(ends)
                finish, text = (
                    "stop",
                    text[:end] if body.get("include_stop_str_in_output") or not self.strips_stop else text[: end - len(reason)],
                )
                break
        choice: dict[str, Any] = {"text": text, "finish_reason": finish}
        if self.tells_stop:
            choice["stop_reason"] = reason
        if self.token_ids and body.get("return_token_ids"):
            choice["token_ids"] = ids
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": log_probs, "tokens": [str(i) for i in ids], "top_logprobs": top}
        return choice

    def _structured(self, text: str, body: dict[str, Any]) -> Tensor | float:
        """Of structured outputs: -inf for tokens that lead to none of the choices, and for an end where none is complete."""
        choices = body.get("structured_outputs", {}).get("choice")
        if choices is None:
            return 0.0
        after = [text + self.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(self.tokenizer))]
        follows = [grown != text and any(choice.startswith(grown) for choice in choices) for grown in after]
        follows[self.tokenizer.eos_token_id] = text in choices
        return torch.where(torch.tensor(follows), 0.0, -torch.inf)

    # Pooling --------------------------------------------------------------------------------------------------------------------------

    def _pooling(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.pool is None:
            raise _Refused("The model does not support Pooling API")
        entries = []
        for i, ids in enumerate(body["input"] if isinstance(body["input"][0], list) else [body["input"]]):
            if self.max_model_len is not None and len(ids) > self.max_model_len:
                raise _Refused(f"This model's maximum context length is {self.max_model_len} tokens.")
            rows = self.pool(ids)
            if self.pooler.get("returned_token_ids"):
                rows = rows[:, self.pooler["returned_token_ids"]]
            if self.pooler.get("step_tag_id") is not None:
                rows = rows[torch.tensor(ids) == self.pooler["step_tag_id"]]
            if body.get("use_activation", True) or self.pooler.get("always_activates"):
                rows = rows.softmax(-1) if rows.shape[-1] > 1 else rows.sigmoid()
            entries.append({"index": i, "object": "pooling", "data": rows.tolist()})
        return {"id": "pool-1", "object": "list", "model": self.model, "data": entries, "usage": {"prompt_tokens": 0}}


class _Refused(Exception):
    """A request that the server does not accept."""


def _warped(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities after temperature, top-k and top-p."""
    probs = (logits / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    kept = probs[order]
    if top_k > 0:
        kept[top_k:] = 0.0
        kept = kept / kept.sum()
    if top_p < 1.0:
        kept[kept.cumsum(-1) - kept >= top_p] = 0.0
    result = torch.zeros_like(probs)
    result[order] = kept / kept.sum()
    return result
