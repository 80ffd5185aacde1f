"""API keys: read from the environment when a request is made, and kept nowhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

DEFAULT_VARIABLE = "PPL_LLM_API_KEY"


class ApiKey:
    """A bearer token named by an environment variable; httpx calls it with each request. Only the name is stored, so that it can be shown
    and saved.

    :param str variable: name of the environment variable; an unset one sends no token.
    """

    def __init__(self, variable: str = DEFAULT_VARIABLE) -> None:
        self.variable = variable

    def __call__(self, request: httpx.Request) -> httpx.Request:
        key = self._key()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"the environment variable {self.variable} holds characters that an API key cannot have")
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _key(self) -> str:
        return os.environ.get(self.variable, "").strip()

    def scrub(self, text: str) -> str:
        """``text`` without the key, should a server have quoted it."""
        key = self._key()
        return text.replace(key, "***") if key else text

    def __repr__(self) -> str:
        return f"ApiKey({self.variable!r})"
