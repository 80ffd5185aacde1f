"""Keys and values of token sequences, and the forward passes of a transformers model over them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import KVCache
    from .engine import CacheEngine
    from .lookup import CacheLookup, look_up
    from .memory_limit import CacheTooLarge
    from .pool import DEFAULT_CACHE_BYTES, KVCachePool, Lease
    from .support import cache_engine, cache_keyword, context_limit

# Imported on first use, as torch and transformers take seconds.
_HOME = {
    "CacheEngine": "engine",
    "CacheLookup": "lookup",
    "CacheTooLarge": "memory_limit",
    "DEFAULT_CACHE_BYTES": "pool",
    "KVCache": "cache",
    "KVCachePool": "pool",
    "Lease": "pool",
    "cache_engine": "support",
    "cache_keyword": "support",
    "context_limit": "support",
    "look_up": "lookup",
}

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "CacheEngine",
    "CacheLookup",
    "CacheTooLarge",
    "KVCache",
    "KVCachePool",
    "Lease",
    "cache_engine",
    "cache_keyword",
    "context_limit",
    "look_up",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
