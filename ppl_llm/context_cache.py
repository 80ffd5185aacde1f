"""Notes of backends on contexts, on their way to another process and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .context import Context, LaneMemo

_STORED = "stored"


class NoteKey:
    """Under which one backend keeps its notes on contexts: not the backend itself, which a kept context would then keep in memory.

    :param str label: tells a backend from others in the same program; by it a note that was stored in a file finds its backend again.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @classmethod
    def of_model(cls, role: str, model: Any) -> NoteKey:
        """For a network, told by class, size and a few of its weights."""
        parameters = list(model.parameters())
        some = parameters[-1].detach().flatten()[:1024]
        few = "" if some.device.type == "meta" else hashlib.sha256(some.float().cpu().numpy().tobytes()).hexdigest()[:8]
        return cls(f"{role} {type(model).__name__} {sum(parameter.numel() for parameter in parameters)} {few}".rstrip())


def label_of(backend: Any) -> str:
    """Tells a backend from others: the label of its notes, or what class it is of, and how its scores are calibrated."""
    key, calibration = getattr(backend, "_key", None), getattr(backend, "calibration", None)
    label = key.label if isinstance(key, NoteKey) else type(backend).__name__
    return label if calibration is None else f"{label} {calibration}"


class StoredOwner:
    """What a note's owner has become in a file; the first backend that asks takes it over."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._owner: Any = None

    def hand_over(self, adopt: Callable[[Any], Any]) -> Any:
        if self._owner is None and self._state is not None:
            self._owner, self._state = adopt(self._state), None
        return self._owner


def stored(memo: dict[Hashable, LaneMemo]) -> dict[str, Any]:
    """Notes as plain values ``{label: {"lanes": ..., "owner": ...}}``; where a label is not unique it is left out."""
    found: dict[str, list[LaneMemo]] = {}
    for key, note in memo.items():
        if isinstance(key, NoteKey):
            found.setdefault(key.label, []).append(note)
    return {
        label: {"lanes": notes[0].lanes, "owner": notes[0].owner.state() if hasattr(notes[0].owner, "state") else None}
        for label, notes in found.items()
        if len(notes) == 1
    }


def waiting(notes: dict[str, Any]) -> dict[Hashable, tuple[StoredOwner, dict[str, Tensor]]]:
    """Stored notes as entries of a context's memo, until their backends ask for them: owners and lanes by key."""
    return {(_STORED, label): (StoredOwner(note["owner"]), note["lanes"]) for label, note in notes.items()}


def note_of(context: Context, key: NoteKey, adopt: Callable[[Any], Any]) -> LaneMemo | None:
    """A backend's note on a context, ``None`` if there is none.

    :param adopt: makes an owner of what a stored one had become.
    """
    note = context.memo.get(key)
    if note is None:
        kept = context.memo.pop((_STORED, key.label), None)
        if kept is not None:
            note = context.memo[key] = replace(kept, owner=kept.owner.hand_over(adopt))
    return note
