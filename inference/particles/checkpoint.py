"""State of a particle filter at a barrier, from which it can continue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..util import safe_file
from .history import ResamplingRecord, Site
from .plates import Frame
from .pytree import map_objects
from .snapshot import Snapshot
from .weights import Weights

KIND, VERSION = "checkpoint of ppl_llm.SMC", 2


@dataclass(frozen=True)
class Checkpoint:
    """The particle system at a barrier (or at the end of the model) and what surrounds it.

    :ivar dict settings: of the algorithm, plain values.
    :ivar args: what the model was called with; ``None`` if a file does not know it.
    :ivar dict rng: see :func:`~ppl_llm.inference.util.process_state.rng_state`.
    :ivar dict subsamples: indices that plates with subsampling drew.
    :ivar dict cost: counters so far.
    :ivar bool complete: whether the model came to its end.
    :ivar caches: from a file: what each object of the state had saved; ``None`` where the state itself is at hand.
    """

    settings: dict[str, Any]
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]
    snapshot: Snapshot
    rng: dict[str, Any]
    subsamples: dict[str, Tensor]
    cost: dict[str, float]
    complete: bool
    caches: list[Any] | None = None

    def state(self, replayed: Any) -> Any:
        """A replayed state, with the caches that were there when the run stopped.

        The objects in it that permute themselves are replaced by the kept ones, or told their saved caches.
        """
        if self.caches is None:
            kept: list[Any] = []
            map_objects(self.snapshot.value, kept.append)
        else:
            kept = self.caches
        count = 0

        def at_hand(item: Any) -> Any:
            nonlocal count
            count += 1
            if self.caches is None:
                return kept[count - 1] if count <= len(kept) else item
            restore = getattr(item, "restore_cache", None)
            return restore(kept[count - 1]) if restore is not None and count <= len(kept) and kept[count - 1] is not None else item

        state = map_objects(replayed, at_hand)
        if self.caches is not None:
            self.caches.clear()  # they are large, and belong to the state now
        return state

    def with_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Checkpoint:
        """The checkpoint of a file with the model's arguments, where they have to be or are given.

        :raises ValueError: if they are missing, or not those of the run.
        """
        if not args and not kwargs:
            if self.args is None:
                raise ValueError(
                    "the file does not hold the arguments of the model, which were not plain values: pass them to resume() as to run()"
                )
            return self
        if self.args is not None and not safe_file.same([list(args), kwargs], [list(self.args), self.kwargs]):
            raise ValueError(
                f"the run was started with the model's arguments {_shown(self.args, self.kwargs)}, now they are {_shown(args, kwargs)}"
            )
        return replace(self, args=args, kwargs=kwargs)

    def require_settings(self, settings: dict[str, Any]) -> None:
        """
        :raises ValueError: if the run had other settings, showing those that differ.
        """
        pairs = {name: (settings.get(name), self.settings.get(name)) for name in settings | self.settings}
        # An empty tuple comes back from a file as a list; 1 and 1.0 are one setting.
        different = [name for name, (here, there) in pairs.items() if here != there and safe_file.digest(here) != safe_file.digest(there)]
        if different:
            shown = "; ".join(f"{name}: {self.settings.get(name)!r} there, {settings.get(name)!r} here" for name in different)
            raise ValueError(f"the checkpoint was made by a run with other settings: {shown}")

    def save(self, path: Path, caches: bool = True) -> None:
        """:raises OSError: if the directory cannot be written to."""
        shot = self.snapshot
        arguments = [list(self.args or ()), self.kwargs]
        content = {
            "settings": self.settings,
            "arguments": arguments if safe_file.is_plain(arguments) else None,
            "log_weights": shot.weights.log_weights,
            "log_likelihood": shot.log_likelihood,
            "lengths": shot.lengths,
            "log_bridged": shot.log_bridged,
            "share": shot.share,
            "plates": [list(frame) for frame in sorted(shot.plates)],
            "sites": [list(site) for site in shot.sites],
            "steps": [list(step) for step in shot.records],
            "segment": shot.segment,
            "counted": shot.counted,
            "rng": self.rng,
            "subsamples": self.subsamples,
            "cost": dict(self.cost),
            "complete": self.complete,
            "caches": self._caches() if caches and not self.complete else [],
        }
        safe_file.write(path, KIND, VERSION, _stored(content))

    def _caches(self) -> list[Any]:
        if self.caches is not None:
            return self.caches
        found: list[Any] = []

        def ask(item: Any) -> Any:
            found.append(item.cache_state() if callable(getattr(item, "cache_state", None)) else None)
            return item

        map_objects(self.snapshot.value, ask)
        return found

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if it is no checkpoint, or damaged.
        """
        stored = safe_file.read(path, KIND, VERSION)
        arguments = stored["arguments"]
        sites, steps = [Site(*site) for site in stored["sites"]], [ResamplingRecord(*step) for step in stored["steps"]]
        snapshot = Snapshot(
            Weights(stored["log_weights"]),
            stored["log_likelihood"],
            stored["lengths"],
            frozenset(Frame(*frame) for frame in stored["plates"]),
            sites,
            len(sites),
            steps,
            len(steps),
            stored["segment"],
            stored["counted"],
            None,
            stored["log_bridged"],
            stored["share"],
        )
        return cls(
            settings=stored["settings"],
            args=None if arguments is None else tuple(arguments[0]),
            kwargs={} if arguments is None else arguments[1],
            snapshot=snapshot,
            rng=stored["rng"],
            subsamples=stored["subsamples"],
            cost=stored["cost"],
            complete=stored["complete"],
            caches=stored["caches"],
        )


def _stored(value: Any) -> Any:
    """The same value with tensors that own no more memory than they show."""
    return _map_tensors(value, lambda tensor: tensor.detach().clone())


def _map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, fn) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, fn) for item in value)
    return value


def _shown(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
    return f"({text if len(text) < 200 else text[:200] + ' ...'})"
