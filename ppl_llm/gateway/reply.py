"""Replies in OpenAI's form."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from .asked import Asked
from .solver import Outcome, Solution


class Reply:
    """What a request is answered with, at once or in chunks.

    :param Asked asked: the request.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.number = ("chatcmpl-" if asked.chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def _head(self, chunk: bool = False) -> dict[str, Any]:
        kind = "text_completion" if not self._asked.chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self.number, "object": kind, "created": self._created, "model": self._asked.model}

    def whole(self, outcomes: Sequence[Outcome], pages: Sequence[str | None]) -> dict[str, Any]:
        """:param pages: links to the viewer, one for each prompt."""
        reasons = [{**outcome.reasons, "run": link} for outcome, link in zip(outcomes, pages, strict=True)]
        solutions = [solution for outcome in outcomes for solution in outcome.solutions]
        return {
            **self._head(),
            "choices": [self._choice(index, solution) for index, solution in enumerate(solutions)],
            "usage": usage(outcomes),
            "ppl": reasons[0] if len(reasons) == 1 else reasons,
        }

    def _choice(self, index: int, solution: Solution) -> dict[str, Any]:
        said: dict[str, Any] = {"text": solution.text}
        if self._asked.chat:
            said = {"message": {"role": "assistant", "content": solution.text, "refusal": None}}
        own = {"answer": solution.answer, "weight": solution.weight}
        return {"index": index, **said, "finish_reason": solution.finish, "logprobs": None, "ppl": own}

    def begin(self) -> list[bytes]:
        """The first chunks of a stream: clients learn the roles from them."""
        if not self._asked.chat:
            return []
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._asked.n)]

    def text(self, prompt: int, text: str) -> list[bytes]:
        """Text that all answers to a prompt have in common."""
        return [self._chunk(prompt * self._asked.n + i, {"content": text}) for i in range(self._asked.n)] if text else []

    def end(self, prompt: int, rests: Sequence[str], outcome: Outcome, link: str | None) -> list[bytes]:
        """What is left of the answers to a prompt, how they end and why they were chosen."""
        chunks = []
        for i, (rest, solution) in enumerate(zip(rests, outcome.solutions, strict=True)):
            index = prompt * self._asked.n + i
            if rest:
                chunks.append(self._chunk(index, {"content": rest}))
            last = i == len(rests) - 1
            own = {"answer": solution.answer, "weight": solution.weight}
            chunks.append(self._chunk(index, {}, solution.finish, own, {**outcome.reasons, "run": link} if last else None))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, own: Any = None, reasons: dict[str, Any] | None = None
    ) -> bytes:
        said: dict[str, Any] = {"delta": delta} if self._asked.chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "finish_reason": finish, "logprobs": None, **({} if own is None else {"ppl": own})}
        extra: dict[str, Any] = {} if reasons is None else {"ppl": reasons}
        if self._asked.usage:
            extra["usage"] = None
        return data({**self._head(chunk=True), "choices": [choice], **extra})

    def usage(self, outcomes: Sequence[Outcome]) -> bytes:
        """The last chunk, where it was asked for."""
        return data({**self._head(chunk=True), "choices": [], "usage": usage(outcomes)})


def usage(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Tokens of prompts and answers; ``ppl.cost`` has those of all solutions that were written to find them."""
    prompt = sum(outcome.prompt_tokens for outcome in outcomes)
    completion = sum(solution.tokens for outcome in outcomes for solution in outcome.solutions)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def data(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def comment(value: Any) -> bytes:
    """A line that clients skip; it keeps the connection alive."""
    return b": " + json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
