"""Keys and values of one layer in blocks of tokens, and what a forward pass reads of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .layer import KeysChanged, RaggedLayer, grown, zeros

BLOCK = 16
"""Tokens of a block."""

_GATHERED_BYTES = 2**21
"""Keys and values that are gathered at a time: small enough to stay in a core's caches, which attention then reads instead of memory, and
large enough for few calls (measured: gathered keys then cost about as much as a view of rows)."""


class BlockWrites:
    """Where the next forward pass writes and what it reads; shared by all layers of a KV cache.

    :ivar int num_blocks: blocks of each layer.
    :ivar int capacity: columns of a row.
    :ivar Tensor places: ``[...]`` places of the tokens, counted from the first block's first on.
    :ivar int stop: columns that attention masks have.
    :ivar BlockReads reads: what attention reads.
    """

    def __init__(self) -> None:
        self.num_blocks, self.capacity, self.stop = 0, 0, 0
        self.places = torch.empty(0, dtype=torch.long)
        self.reads = BlockReads(torch.empty(0, 0, dtype=torch.long), 0)


class BlockLayer(RaggedLayer[BlockWrites]):
    """One layer of a :class:`~ppl_llm.kv_cache.block_cache.BlockKVCache`: ``keys`` and ``values`` ``[blocks, BLOCK, kv_heads, head_dim]``.

    A model is given back its new keys and values only, which stand for all of them until :meth:`BlockReads.keys`.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """:param Tensor key_states: ``[A, kv_heads, q, head_dim]``; ``value_states`` likewise."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            zeros(states, self._writes.num_blocks, BLOCK, states.shape[1], states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        places = self._writes.places.flatten()
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            store.flatten(0, 1).index_copy_(0, places, states.transpose(1, 2).flatten(0, 1))
        self._writes.reads.add(key_states, self)
        return key_states, value_states

    def grow(self, num_blocks: int) -> None:
        """:raises CacheTooLarge: if there is no memory for it; :meth:`shrink` then makes the layer what it was before."""
        if self.is_initialized:
            self.keys = grown(self.keys, num_blocks, *self.keys.shape[1:])  # one after the other: less memory at a time
            self.values = grown(self.values, num_blocks, *self.values.shape[1:])

    def shrink(self, num_blocks: int) -> None:
        """Undo :meth:`grow`."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:num_blocks], self.values[:num_blocks]

    def copy_blocks(self, giver: BlockLayer, source: Tensor, target: Tensor) -> None:
        """Fill blocks ``target [K]`` with blocks ``source [K]`` of the same layer of a cache, another one or the same."""
        if giver.is_initialized:
            if not self.is_initialized:
                self.lazy_initialization(giver.keys.transpose(1, 2), giver.values.transpose(1, 2))
            for store, given in ((self.keys, giver.keys), (self.values, giver.values)):
                store[target] = given[source]


class Chunk(NamedTuple):
    """Sequences whose keys are gathered together.

    :ivar slice sequences: which.
    :ivar Tensor blocks: ``[K]``, those of one after the other.
    :ivar tuple scratch: memory ``[K, BLOCK, kv_heads, head_dim]`` for their keys and values.
    :ivar tuple views: of it, ``[a, kv_heads, T, head_dim]``.
    """

    sequences: slice
    blocks: Tensor
    scratch: tuple[Tensor, Tensor]
    views: tuple[Tensor, Tensor]


class BlockReads:
    """What a forward pass reads of the blocks of a KV cache.

    :param Tensor table: ``[A, n]`` the blocks of each sequence; of each row of the KV cache in a pass over packed tokens.
    :param int stop: columns that attention masks have.
    """

    def __init__(self, table: Tensor, stop: int) -> None:
        self._table, self.stop = table, stop
        self._layers: dict[int, tuple[Tensor, BlockLayer]] = {}
        self._chunks: dict[tuple[object, ...], list[Chunk]] = {}
        self._runs: dict[tuple[int, int, int], slice | Tensor] = {}

    def add(self, key: Tensor, layer: BlockLayer) -> None:
        self._layers[id(key)] = key, layer  # with the key, so that no other gets its id

    def keys(self, key: Tensor) -> BlockKeys:
        """All keys of the layer that has given a key.

        :raises KeysChanged: if none has.
        """
        if id(key) not in self._layers:
            raise KeysChanged("the model's attention function got other keys than its cache gave")
        layer = self._layers[id(key)][1]
        return BlockKeys(self, layer.keys, layer.values)

    def clear(self) -> None:
        """The pass is over."""
        self._layers.clear()
        self._chunks.clear()

    def chunks(self, start: int, key: Tensor, value: Tensor) -> list[Chunk]:
        """Sequences, as many at a time as are gathered together, and their blocks from column ``start`` on; the same for alike layers."""
        kind = start, key.shape[1:], value.shape[1:], key.dtype
        if kind not in self._chunks:
            self._chunks[kind] = self._made(start, key, value)
        return self._chunks[kind]

    def _made(self, start: int, key: Tensor, value: Tensor) -> list[Chunk]:
        table, behind = self._table[:, start // BLOCK :], start % BLOCK
        block_bytes = sum(store[0].numel() * store.element_size() for store in (key, value))
        size = min(len(table), max(1, _GATHERED_BYTES // max(1, table.shape[1] * block_bytes)))
        memory = [store.new_empty(size * table.shape[1], *store.shape[1:]) for store in (key, value)]
        chunks = []
        for begin in range(0, len(table), size):
            blocks = table[begin : begin + size].flatten()
            number = len(blocks) // table.shape[1]
            scratch = memory[0][: len(blocks)], memory[1][: len(blocks)]
            first, second = (
                each.view(number, -1, *each.shape[2:])[:, behind : self.stop - start + behind].transpose(1, 2) for each in scratch
            )
            chunks.append(Chunk(slice(begin, begin + number), blocks, scratch, (first, second)))
        return chunks

    def run(self, row: int, start: int, stop: int) -> slice | Tensor:
        """The blocks of columns ``start .. stop - 1`` of a sequence; a slice where these follow one another."""
        if (row, start, stop) not in self._runs:
            blocks = self._table[row, start // BLOCK : -(-stop // BLOCK)]
            first = int(blocks[0])
            whole = torch.equal(blocks, torch.arange(first, first + len(blocks)))
            self._runs[row, start, stop] = slice(first, first + len(blocks)) if whole else blocks
        return self._runs[row, start, stop]


class BlockKeys(NamedTuple):
    """Keys of sequences in blocks; see :class:`~ppl_llm.kv_cache.attention.RowKeys`."""

    reads: BlockReads
    key: Tensor
    value: Tensor

    def common(self, shared: int) -> tuple[Tensor, Tensor]:
        return self._of(0, 0, shared)

    def parts(self, start: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for chunk in self.reads.chunks(start, self.key, self.value):
            torch.index_select(self.key, 0, chunk.blocks, out=chunk.scratch[0])
            torch.index_select(self.value, 0, chunk.blocks, out=chunk.scratch[1])
            yield chunk.sequences, *chunk.views

    def of(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        key, value = self._of(row, start, stop)
        return key[0], value[0]

    def _of(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        blocks, behind = self.reads.run(row, start, stop), start % BLOCK
        key, value = (store[blocks].flatten(0, 1)[behind : stop - start + behind].transpose(0, 1)[None] for store in (self.key, self.value))
        return key, value
