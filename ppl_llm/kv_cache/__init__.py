"""Keys and values of token sequences, and the forward passes of a transformers model over them."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .cache import KVCache
    from .engine import CacheEngine
    from .lookup import CacheLookup, look_up
    from .memory_limit import CacheTooLarge
    from .pool import DEFAULT_CACHE_BYTES, KVCachePool, Lease
    from .support import cache_engine, cache_keyword, context_limit

_MODULES = {
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


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
