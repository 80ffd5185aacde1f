"""Keys and values of one layer of a KV cache, as transformers' cache interface wants them."""

from __future__ import annotations

import math
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from .memory_limit import REMEDY, CacheTooLarge, is_out_of_memory
from .packing import Segments


class Writes:
    """Where the next forward pass writes and how much it reads; shared by all layers of a KV cache.

    :ivar int first: the first of the ``A`` rows, which are read as a view.
    :ivar Tensor row_index: ``[A]``, all of them.
    :ivar Tensor columns: ``[A, q]`` column that each token is written to.
    :ivar int stop: columns read.
    :ivar segments: of packed tokens, else ``None``: all rows are then read, and ``row_index`` and ``columns`` are ``[T]``.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.capacity = 0
        self.first = 0
        self.row_index = torch.empty(0, dtype=torch.long)
        self.columns = torch.empty(0, 0, dtype=torch.long)
        self.stop = 0
        self.segments: Segments | None = None


class KeysChanged(ValueError):
    """The model does not hand to its attention function the keys that its cache gave, but others that it makes of them."""


class Columns(Protocol):
    """
    :ivar int stop: columns that a pass reads.
    :ivar int capacity: columns that there are.
    """

    stop: int
    capacity: int


C = TypeVar("C", bound=Columns)


class RaggedLayer(CacheLayerMixin, Generic[C]):
    """A layer whose sequences have their own write position: what transformers asks of its size."""

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, writes: C) -> None:
        super().__init__()
        self._writes = writes  # not the KV cache itself: a reference cycle would keep its memory until the next garbage collection

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._writes.stop, 0

    def get_seq_length(self) -> int:
        return self._writes.stop

    def get_max_length(self) -> int:
        return self._writes.capacity

    def get_max_cache_shape(self) -> int:
        """The same under its name in transformers 5.17."""
        return self._writes.capacity


class KVCacheLayer(RaggedLayer[Writes]):
    """One layer of a :class:`~ppl_llm.kv_cache.cache.KVCache`: ``keys`` and ``values`` ``[rows, kv_heads, capacity, head_dim]``."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            # Zeros, as masked columns are still multiplied by a weight of 0, which must not meet a nan.
            zeros(states, self._writes.num_rows, states.shape[1], self._writes.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        writes, device = self._writes, key_states.device
        sequences, _, length, _ = key_states.shape
        rows, columns = writes.row_index.to(device), writes.columns.to(device)
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            if writes.segments is not None:
                store[rows, :, columns] = states[0].transpose(0, 1)
            elif length == 1:
                store[rows, :, columns[:, 0]] = states[:, :, 0]
            else:
                store[rows[:, None], :, columns] = states.transpose(1, 2)
        if writes.segments is not None:
            return self.keys, self.values
        read = slice(writes.first, writes.first + sequences), slice(None), slice(writes.stop)
        return self.keys[read], self.values[read]

    def grow(self, num_rows: int, capacity: int) -> None:
        """:raises CacheTooLarge: if there is no memory for it; the layer then is as before."""
        if self.is_initialized:
            before = self.keys, self.values
            try:
                self.keys, self.values = (grown(store, num_rows, store.shape[1], capacity, store.shape[3]) for store in before)
            except CacheTooLarge:
                self.keys, self.values = before
                raise

    def shrink(self, num_rows: int, capacity: int) -> None:
        """Undo :meth:`grow`."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:num_rows, :, :capacity], self.values[:num_rows, :, :capacity]


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Keys or values of a shape.

    :raises CacheTooLarge: if there is no memory for them.
    """
    try:
        with torch.inference_mode(False):  # a KV cache outlives the pass that makes it, and is written to outside of inference mode too
            return like.new_zeros(*shape)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tokens = math.prod(shape) // (like.shape[1] * like.shape[3])
        raise CacheTooLarge(f"no memory for the keys of {tokens} tokens\n{REMEDY}") from error


def grown(store: Tensor, *shape: int) -> Tensor:
    """Keys or values in a larger shape; zeros where there was nothing.

    :raises CacheTooLarge: if there is no memory for them.
    """
    new = zeros(store, *shape)
    new[tuple(slice(size) for size in store.shape)] = store
    return new
