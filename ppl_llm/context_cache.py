"""What backends keep about contexts, and its way to another process and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

_STORED = "stored"


@dataclass(frozen=True)
class CacheEntry:
    """What a backend keeps about a context to find its caches again. Never needed for a correct result.

    :param owner: anything, e.g. a weak reference to a KV cache.
    :param dict tensors: of shape ``[*batch_shape, ...]``, carried along by every operation on the context.
    """

    owner: Any
    tensors: dict[str, Tensor]

    def fits(self, batch_shape: tuple[int, ...]) -> bool:
        """Whether there is an element for each sequence of a batch."""
        return all(tensor.shape[: len(batch_shape)] == batch_shape for tensor in self.tensors.values())

    def map(self, fn: Callable[[Tensor], Tensor]) -> CacheEntry:
        return replace(self, tensors={name: fn(tensor) for name, tensor in self.tensors.items()})


class CacheKey:
    """Under which one backend keeps its entries: not the backend itself, which a kept context would then keep in memory.

    :param str label: tells a backend from others in the same program; by it an entry that was stored in a file finds its backend again.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @classmethod
    def of_model(cls, role: str, model: Any) -> CacheKey:
        """For a network, told by class, size and a few of its weights."""
        parameters = list(model.parameters())
        some = parameters[-1].detach().flatten()[:1024]
        few = "" if some.device.type == "meta" else hashlib.sha256(some.float().cpu().numpy().tobytes()).hexdigest()[:8]
        return cls(f"{role} {type(model).__name__} {sum(parameter.numel() for parameter in parameters)} {few}".rstrip())


def label_of(backend: Any) -> str:
    """Tells a backend from others: its own ``label``, that of its entries, or what class it is of, and how its scores are calibrated."""
    key, calibration = getattr(backend, "_key", None), getattr(backend, "calibration", None)
    own = getattr(backend, "label", None)
    label = own if isinstance(own, str) else key.label if isinstance(key, CacheKey) else type(backend).__name__
    return label if calibration is None else f"{label} {calibration}"


class StoredOwner:
    """What an entry's owner has become in a file; the first backend that asks takes it over."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._owner: Any = None

    def hand_over(self, adopt: Callable[[Any], Any]) -> Any:
        if self._owner is None and self._state is not None:
            self._owner, self._state = adopt(self._state), None
        return self._owner


def stored_entries(entries: dict[Hashable, CacheEntry]) -> dict[str, Any]:
    """Entries as plain values ``{label: {"tensors": ..., "owner": ...}}``; where a label is not unique it is left out."""
    found: dict[str, list[CacheEntry]] = {}
    for key, entry in entries.items():
        if isinstance(key, CacheKey):
            found.setdefault(key.label, []).append(entry)
    return {
        label: {"tensors": same[0].tensors, "owner": same[0].owner.state() if hasattr(same[0].owner, "state") else None}
        for label, same in found.items()
        if len(same) == 1
    }


def restored_entries(state: dict[str, Any]) -> dict[Hashable, CacheEntry]:
    """What :func:`stored_entries` gave, as entries that wait for their backends."""
    return {(_STORED, label): CacheEntry(StoredOwner(each["owner"]), each["tensors"]) for label, each in state.items()}


def find_entry(entries: dict[Hashable, CacheEntry], key: CacheKey, adopt: Callable[[Any], Any]) -> CacheEntry | None:
    """A backend's entry among those of a context, ``None`` if there is none.

    :param adopt: makes an owner of what a stored one had become.
    """
    entry = entries.get(key)
    if entry is None:
        stored = entries.pop((_STORED, key.label), None)
        if stored is not None:
            entry = entries[key] = replace(stored, owner=stored.owner.hand_over(adopt))
    return entry
