"""Where a server is."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """URLs of a server.

    :ivar str api: of the OpenAI-compatible part, which ends in ``/v1`` as a rule.
    :ivar str root: of everything else.
    """

    api: str
    root: str

    @classmethod
    def parse(cls, base_url: str) -> Address:
        """
        :param str base_url: e.g. ``http://host:8000/v1``; without a path, ``/v1`` is added.
        :raises ValueError: for anything but an http or https address, and for one that holds a password.
        """
        parts = urlsplit(base_url.strip())
        if parts.username is not None or parts.password is not None:
            raise ValueError("a server's address must not hold a user name or password; give the key in an environment variable")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a server's address looks like http://host:8000/v1, got {base_url!r}")
        if parts.query or parts.fragment:
            raise ValueError(f"a server's address has no query or fragment, got one in {parts.scheme}://{parts.netloc}{parts.path}")
        path = parts.path.rstrip("/")
        origin = f"{parts.scheme}://{parts.netloc}"
        return cls(origin + (path or "/v1"), origin + path.removesuffix("/v1"))


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.strip().lower().startswith(("http://", "https://"))
