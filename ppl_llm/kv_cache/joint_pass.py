"""One forward pass over sequences that live in several KV caches: only attention tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache import KVCache
from .engine import CacheEngine
from .layer import RaggedLayer
from .memory_limit import is_out_of_memory


class KeysChanged(ValueError):
    """The model does not hand to its attention function the keys that its cache gave, but others that it makes of them."""


class Part(NamedTuple):
    """A token of each sequence of one KV cache, for which ``cache.place`` has made room.

    :ivar Tensor ids: ``[A, 1]``.
    :ivar Tensor positions: ``[A, 1]``.
    :ivar Tensor mask: ``[A, 1, 1, stop]``.
    :ivar int shared: leading tokens that the sequences have in common and that are worth reading once.
    """

    cache: KVCache
    ids: Tensor
    positions: Tensor
    mask: Tensor
    shared: int = 0


class Parts:
    """What a forward pass and its attention function need to know of them.

    :ivar int stop: columns of the mask, and ``capacity``, as there are no others.
    :ivar list shared: ``shared`` of each part.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._caches = [part.cache for part in parts]
        ends = torch.tensor([len(part.ids) for part in parts]).cumsum(0).tolist()
        self._rows = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        self.stop = self.capacity = max(part.mask.shape[-1] for part in parts)
        self.shared = [part.shared for part in parts]
        self._views: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values ``[A, kv_heads, 1, D]`` of a layer where they belong; they stand for all keys until :meth:`attend`."""
        views = [cache.hf_cache.layers[layer].update(key[rows], value[rows]) for cache, rows in zip(self._caches, self._rows, strict=True)]
        self._views[id(key)] = key, views  # with the key, so that no other gets its id
        return key, value

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attention of each KV cache's sequences over its own keys: ``[A, 1, heads, D]``.

        :param attention: called with queries, keys, values, mask and ``shared`` of one cache.
        :raises KeysChanged: for keys that :meth:`store` did not return.
        """
        if id(key) not in self._views:
            raise KeysChanged("the model's attention function got other keys than its cache gave")
        _, views = self._views[id(key)]
        found = [
            attention(query[rows], keys, values, mask[rows, ..., : keys.shape[2]], shared)
            for rows, (keys, values), shared in zip(self._rows, views, self.shared, strict=True)
        ]
        return torch.cat(found)


class _JointLayer(RaggedLayer):
    """A layer of the cache that the model is given."""

    is_initialized = True

    def __init__(self, parts: Parts, index: int) -> None:
        super().__init__()
        self._parts, self._index = parts, index

    @property
    def columns(self) -> Parts:
        return self._parts

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """KV caches have been made before."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        return self._parts.store(self._index, key_states, value_states)


class JointPass:
    """Runs the next token of sequences in several KV caches.

    :param CacheEngine engine: of the model.
    :ivar bool possible: whether the model hands the keys of its cache to its attention function; if not, which the first pass shows, each
        KV cache gets its own pass.
    """

    def __init__(self, engine: CacheEngine) -> None:
        self._engine = engine
        self.possible = True

    def run(self, parts: Sequence[Part]) -> list[Tensor]:
        """Logits ``[A, V]`` of parts that were run together, in their order. Where memory runs out, they are fewer, and then split.

        :raises MemoryError: if memory does not even allow a pass over one token.
        """
        outputs: list[Tensor] = []
        limit = self._engine.at_once
        left = parts
        while left:
            allowed = limit.allowed(sum(len(part.ids) for part in left))
            ends = torch.tensor([len(part.ids) for part in left]).cumsum(0)
            group = left[: max(1, int((ends <= allowed).sum()))] if self.possible else left[:1]
            if len(group) == 1:
                part = group[0]
                outputs.append(self._engine.run(part.cache, part.ids, part.positions, part.mask, 1, part.shared)[:, -1])
                left = left[1:]
                continue
            try:
                outputs.append(self._together(group))
                left = left[len(group) :]
            except KeysChanged:
                self.possible = False
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                limit.halve(int(ends[len(group) - 1]), error)
        return outputs

    def _together(self, group: Sequence[Part]) -> Tensor:
        parts = Parts(group)
        positions = torch.cat([part.positions for part in group])
        output: Tensor = self._engine.forward(
            input_ids=torch.cat([part.ids for part in group]),
            attention_mask=(torch.arange(parts.stop, device=positions.device) <= positions[..., None])[:, None],
            position_ids=positions,
            cache=Cache(layers=[_JointLayer(parts, index) for index in range(len(group[0].cache.hf_cache.layers))]),
            use_cache=True,
            logits_to_keep=1,
            parts=parts,
            shared=max(parts.shared),
        ).to(self._engine.device)
        return output[:, -1]
