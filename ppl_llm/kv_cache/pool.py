"""A bounded set of KV caches, found again through the cache entries of contexts that never keep them alive."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..context_cache import CacheEntry
from .cache import KVCache

DEFAULT_CACHE_BYTES = 2 * 2**30
"""Memory for the keys and values of one model."""


class Lease:
    """What a cache entry holds of a KV cache: enough to find it while it exists, and to tell that a context still refers to it."""

    def __init__(self, cache: KVCache | None) -> None:
        self._cache = None if cache is None else weakref.ref(cache)

    @property
    def cache(self) -> KVCache | None:
        """The KV cache, or ``None`` if its memory has been released."""
        return None if self._cache is None else self._cache()

    def state(self) -> dict[str, Any] | None:
        """What the KV cache holds, to be stored."""
        return None if self.cache is None else self.cache.state()

    def __deepcopy__(self, _: object) -> Lease:
        return self

    def __reduce__(self) -> tuple[type[Lease], tuple[None]]:
        return Lease, (None,)  # caches do not travel to other processes


class KVCachePool:
    """KV caches in order of use, the oldest released once they exceed ``cache_bytes`` together; the one in use always stays.

    :param make: makes an empty KV cache; may be changed later.
    :param int cache_bytes: bound on the memory of all KV caches.
    """

    def __init__(self, make: Callable[[], KVCache], cache_bytes: int) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {cache_bytes!r}")
        self.make = make
        self.cache_bytes = cache_bytes
        self.caches: list[KVCache] = []  # least recently used first
        self._leases: dict[int, weakref.ref[Lease]] = {}
        self._reserved: list[KVCache] = []

    def take(self, entry: CacheEntry | None) -> KVCache:
        """The KV cache that an entry leads to, else one that no context refers to, else a new one; none that is reserved."""
        cache = entry.owner.cache if entry is not None else None
        if cache is None or cache in self._reserved:
            cache = next((free for free in reversed(self.caches) if self._lease(free) is None and free not in self._reserved), None)
        if cache is None:
            cache = self.make()
        elif cache in self.caches:
            self.caches.remove(cache)
        self.caches.append(cache)
        return cache

    @contextmanager
    def reserved(self, cache: KVCache) -> Iterator[None]:
        """While a step is in progress in a KV cache, with other programs running in between, others cannot take it and it stays."""
        self._reserved.append(cache)
        try:
            yield
        finally:
            self._reserved.remove(cache)

    def lease(self, cache: KVCache) -> Lease:
        """What a cache entry holds of a KV cache."""
        lease = self._lease(cache)
        if lease is None:
            lease = Lease(cache)
            self._leases[id(cache)] = weakref.ref(lease)
        return lease

    def adopt(self, state: dict[str, Any]) -> Lease:
        """A KV cache with the contents of one of another process."""
        cache = self.take(None)
        cache.load(state)
        return self.lease(cache)

    def at_rest(self, cache: KVCache) -> list[KVCache]:
        """The other KV caches that hold something and that no step in progress is writing to."""
        return [other for other in self.caches if other is not cache and other not in self._reserved and other.num_rows]

    def trim(self) -> None:
        """Release the least recently used KV caches until the bound holds."""
        total = sum(cache.num_bytes for cache in self.caches)
        for oldest in [cache for cache in self.caches[:-1] if cache not in self._reserved]:
            if total <= self.cache_bytes:
                return
            self.caches.remove(oldest)
            self._leases.pop(id(oldest), None)
            total -= oldest.num_bytes

    def release_others(self, cache: KVCache) -> bool:
        """Release all KV caches but one and those that are reserved; whether there were any."""
        others = [other for other in self.caches if other is not cache and other not in self._reserved]
        for other in others:
            self.caches.remove(other)
            self._leases.pop(id(other), None)
        return bool(others)

    def clear(self) -> None:
        """Release all KV caches; contexts stay valid."""
        self.caches.clear()
        self._leases.clear()
        give_back()

    def _lease(self, cache: KVCache) -> Lease | None:
        reference = self._leases.get(id(cache))
        return None if reference is None else reference()


def give_back() -> None:
    """Ask the C library for what it keeps of freed memory, some ten milliseconds.

    Keys and values of ever other sizes leave holes that glibc neither fills nor returns: over half an hour of an evaluation the resident
    memory would grow by a tenth (``benchmarks/soak.py``).
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's, ``None`` elsewhere."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none that has a name
        return None
    return trim
