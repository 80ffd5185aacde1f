"""A bounded set of slabs, found again through notes on contexts that never keep them alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..context import LaneMemo
from .cache import KVSlab
from .freed_memory import give_back

DEFAULT_CACHE_BYTES = 2 * 2**30
"""Memory for the keys and values of one model."""


class Lease:
    """What a context holds of a slab: enough to find it while it exists, and to tell that somebody may come back for it."""

    def __init__(self, slab: KVSlab | None) -> None:
        self._slab = None if slab is None else weakref.ref(slab)

    @property
    def slab(self) -> KVSlab | None:
        """The slab, or ``None`` if its memory has been released."""
        return None if self._slab is None else self._slab()

    def state(self) -> dict[str, Any] | None:
        """What the slab holds, to be stored."""
        return None if self.slab is None else self.slab.state()

    def __deepcopy__(self, memo: object) -> Lease:
        return self

    def __reduce__(self) -> tuple[type[Lease], tuple[None]]:
        return Lease, (None,)  # caches do not travel to other processes


class SlabPool:
    """Slabs in order of use, the oldest released once they exceed ``cache_bytes`` together; the one in use always stays.

    :param make: makes an empty slab.
    :param int cache_bytes: bound on the memory of all slabs.
    """

    def __init__(self, make: Callable[[], KVSlab], cache_bytes: int) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {cache_bytes!r}")
        self._make = make
        self.cache_bytes = cache_bytes
        self.slabs: list[KVSlab] = []  # least recently used first
        self._leases: dict[int, weakref.ref[Lease]] = {}
        self._reserved: list[KVSlab] = []

    def take(self, memo: LaneMemo | None) -> KVSlab:
        """The slab that a note leads to, else one that no context refers to, else a new one; none that is reserved."""
        slab = memo.owner.slab if memo is not None else None
        if slab is None or slab in self._reserved:
            slab = next((free for free in reversed(self.slabs) if self._lease(free) is None and free not in self._reserved), None)
        if slab is None:
            slab = self._make()
        elif slab in self.slabs:
            self.slabs.remove(slab)
        self.slabs.append(slab)
        return slab

    @contextmanager
    def reserved(self, slab: KVSlab) -> Iterator[None]:
        """While a step is under way in a slab, with other programs running in between, it is not for others and stays."""
        self._reserved.append(slab)
        try:
            yield
        finally:
            self._reserved.remove(slab)

    def lease(self, slab: KVSlab) -> Lease:
        """What a context notes of a slab."""
        lease = self._lease(slab)
        if lease is None:
            lease = Lease(slab)
            self._leases[id(slab)] = weakref.ref(lease)
        return lease

    def adopt(self, state: dict[str, Any]) -> Lease:
        """A slab with what one held in another process."""
        slab = self.take(None)
        slab.load(state)
        return self.lease(slab)

    def trim(self) -> None:
        """Release the least recently used slabs until the bound holds."""
        total = sum(slab.num_bytes for slab in self.slabs)
        for oldest in [slab for slab in self.slabs[:-1] if slab not in self._reserved]:
            if total <= self.cache_bytes:
                return
            self.slabs.remove(oldest)
            self._leases.pop(id(oldest), None)
            total -= oldest.num_bytes

    def release_others(self, slab: KVSlab) -> bool:
        """Release all slabs but one and those that are reserved; whether there were any."""
        others = [other for other in self.slabs if other is not slab and other not in self._reserved]
        for other in others:
            self.slabs.remove(other)
            self._leases.pop(id(other), None)
        return bool(others)

    def clear(self) -> None:
        """Release all slabs; contexts stay valid."""
        self.slabs.clear()
        self._leases.clear()
        give_back()

    def _lease(self, slab: KVSlab) -> Lease | None:
        reference = self._leases.get(id(slab))
        return None if reference is None else reference()
