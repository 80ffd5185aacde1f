"""Viewer pages of runs, kept for a while."""

from __future__ import annotations

import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

_BYTES = 64 << 20
"""Of all pages, compressed."""


class _Page(NamedTuple):
    data: bytes
    until: float


class Pages:
    """Pages by numbers that nobody can guess: a link is enough, no key is needed.

    :param int most: pages kept; older ones go first.
    :param float seconds: how long one is kept.
    :param clock: in seconds.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._pages: OrderedDict[str, _Page] = OrderedDict()

    def put(self, page: str) -> str | None:
        """Keep a page: its number, ``None`` where none are kept."""
        if self._most == 0:
            return None
        number = secrets.token_urlsafe(16)
        self._pages[number] = _Page(zlib.compress(page.encode(), 1), self._clock() + self._seconds)
        self._clean()
        return number if number in self._pages else None

    def get(self, number: str) -> str | None:
        self._clean()
        found = self._pages.get(number)
        return None if found is None else zlib.decompress(found.data).decode()

    def _clean(self) -> None:
        now = self._clock()
        while self._pages and (
            len(self._pages) > self._most
            or sum(len(page.data) for page in self._pages.values()) > _BYTES
            or next(iter(self._pages.values())).until <= now
        ):
            self._pages.popitem(last=False)

    def __len__(self) -> int:
        return len(self._pages)
