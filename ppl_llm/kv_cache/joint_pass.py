"""One forward pass over sequences that live in several KV caches: only attention tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .block_layer import BlockReads
from .cache import KVCache
from .engine import CacheEngine
from .layer import KeysChanged, RaggedLayer
from .memory_limit import is_out_of_memory


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


class View(NamedTuple):
    """Keys and values of one KV cache, as attention is given them."""

    key: Tensor
    value: Tensor
    blocks: BlockReads | None


class JointWrites:
    """Where several KV caches keep the keys of one forward pass.

    :param caches: in the order in which their tokens lie in the pass.
    :ivar int stop: columns of the mask, and ``capacity``, as there are no others.
    """

    def __init__(self, caches: Sequence[KVCache], stop: int) -> None:
        self._caches, self.stop, self.capacity = caches, stop, stop
        self._views: dict[int, tuple[Tensor, list[View]]] = {}

    @property
    def hf_cache(self) -> Cache:
        """What the model's forward is given."""
        return Cache(layers=[_JointLayer(self, index) for index in range(len(self._caches[0].hf_cache.layers))])

    def split(self, states: Tensor) -> Sequence[Tensor]:
        """Queries, keys or values of a pass, cache by cache."""
        raise NotImplementedError

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values of a layer where they belong; they stand for all keys until :meth:`views`."""
        each = zip(self._caches, self.split(key), self.split(value), strict=True)
        views = []
        for cache, keys, values in each:
            own_keys, own_values = cache.hf_cache.layers[layer].update(keys, values)
            views.append(View(own_keys, own_values, cache.reads))
        self._views[id(key)] = key, views  # with the key, so that no other gets its id
        return key, value

    def views(self, key: Tensor) -> list[View]:
        """Keys and values of each KV cache.

        :raises KeysChanged: for keys that :meth:`store` did not return.
        """
        if id(key) not in self._views:
            raise KeysChanged("the model's attention function got other keys than its cache gave")
        return self._views[id(key)][1]


class Parts(JointWrites):
    """What a forward pass over a token of each sequence and its attention function need to know.

    :ivar list shared: ``shared`` of each part.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__([part.cache for part in parts], max(part.mask.shape[-1] for part in parts))
        self._sizes = [len(part.ids) for part in parts]
        self._stops = [part.mask.shape[-1] for part in parts]
        self.shared = [part.shared for part in parts]

    def split(self, states: Tensor) -> Sequence[Tensor]:
        return states.split(self._sizes)

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attention of each KV cache's sequences over its own keys: ``[A, 1, heads, D]``.

        :param attention: called with queries, keys, values, mask, ``shared`` and ``blocks`` of one cache.
        """
        each = zip(self.split(query), self.views(key), self.split(mask), self._stops, self.shared, strict=True)
        found = [
            attention(query, view.key, view.value, mask[..., :stop], shared=shared, blocks=view.blocks)
            for query, view, mask, stop, shared in each
        ]
        return torch.cat(found)


class _JointLayer(RaggedLayer[JointWrites]):
    """A layer of the cache that the model is given."""

    is_initialized = True

    def __init__(self, writes: JointWrites, index: int) -> None:
        super().__init__(writes)
        self._index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """KV caches have been made before."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        return self._writes.store(self._index, key_states, value_states)


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
            cache=parts.hf_cache,
            use_cache=True,
            logits_to_keep=1,
            parts=parts,
            shared=max(parts.shared),
        ).to(self._engine.device)
        for part in group:
            part.cache.passed()
        return output[:, -1]
