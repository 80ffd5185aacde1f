"""``/v1/completions`` as a function of request bodies, with its work counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..inference.cost import count
from .client import ServerClient
from .completions import Completion
from .errors import ServerError


class CompletionService:
    """Sends completion requests and checks that the same model answers all of them.

    :param ServerClient client: connections to the server.
    :param str counter: names of the counters begin with it.
    :ivar str answers_as: what the server calls the model in its replies, once there was one.
    """

    def __init__(self, client: ServerClient, counter: str = "lm") -> None:
        self.client, self._counter = client, counter
        self.answers_as: str | None = None

    def complete(self, bodies: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[Completion]:
        """Replies to requests that are sent at once, in their order.

        :param sizes: prompts in each of them.
        :raises ServerError: if a request fails for good, or another model answers than before.
        """
        before = self.client.retries

        def read(i: int, reply: Any) -> Completion:
            return Completion.parse(reply, sizes[i])

        try:
            completions = self.client.post(f"{self.client.address.api}/completions", bodies, read)
        except ServerError as error:
            if error.status in (400, 422) and "return_token_ids" in bodies[0]:
                raise ServerError(f"{error}. A server that knows no token ids needs OpenAILM(..., mode='text')", error.status) from None
            raise
        count(**{f"{self._counter}_requests": len(bodies)})
        if repeated := self.client.retries - before:
            count(**{f"{self._counter}_requests_repeated": repeated})
        for size, completion in zip(sizes, completions, strict=True):
            if self.answers_as is None:
                self.answers_as = completion.model
            elif completion.model != self.answers_as:
                raise ServerError(f"the server's model changed under way, from {self.answers_as!r} to {completion.model!r}: start again")
            prefilled = "tokens_prefilled" if self._counter == "lm" else f"{self._counter}_tokens"
            cached = completion.cached_tokens if size == 1 else None  # of several prompts vLLM tells the last one's only
            count(**{prefilled: completion.prompt_tokens - (cached or 0)})
            if cached is not None:
                count(**{f"{self._counter}_tokens_cached": cached})
        return completions
