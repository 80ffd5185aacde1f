"""A KV cache whose sequences share the keys and values of what they have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .block_layer import BLOCK, BlockLayer, BlockReads, BlockWrites
from .cache import ALIGN, KVCache, as_rows
from .memory_limit import CacheTooLarge
from .packing import Segments

_SPARE = 32
"""Blocks grow by this part of them, or by what is needed: more would be memory that nobody uses, less would be copied more often."""

_SHARED = 2
"""What block 0 counts as its references: it stands for blocks that a row lacks, and nobody may write to it."""


class BlockKVCache(KVCache):
    """A :class:`KVCache` in blocks of tokens, each of which belongs to any number of rows; it is copied when one of these writes to it.

    A row is a list of blocks, as pages are of a process (Kwon et al., PagedAttention, 2023). Copies of a row cost nothing but its list, and
    sequences with a common prompt or ancestor hold it once. Attention gathers the blocks of a few sequences at a time, which is for CPUs;
    and only for models that hand to their attention function the keys that their cache gave.
    """

    _layers: list[BlockLayer]
    _token_type = torch.int32

    def __init__(self, num_layers: int, max_length: int, device: torch.device) -> None:
        super().__init__(num_layers, max_length, device)
        self._table = torch.zeros(0, 0, dtype=torch.long)
        self._references = torch.tensor([_SHARED])
        self._in_pass.num_blocks = 1

    def _make_layers(self, number: int) -> None:
        self._in_pass = BlockWrites()
        self._layers = [BlockLayer(self._in_pass) for _ in range(number)]

    @property
    def reads(self) -> BlockReads:
        return self._in_pass.reads

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), self._table, self._references]

    def _capacity_for(self, needed: int, spare: bool) -> int:
        return min(self.max_length, -(-needed // ALIGN) * ALIGN)

    def _resize_keys(self, rows: int, capacity: int) -> None:
        more = -(-capacity // BLOCK) - self._table.shape[1], rows - len(self._table)
        with torch.inference_mode(False):
            self._table = torch.nn.functional.pad(self._table, (0, more[0], 0, more[1]))
        self._in_pass.capacity = capacity

    def place(self, positions: Tensor, stop: int) -> Tensor:
        number = len(positions)
        places = self._places(self._row[:number, None].expand_as(positions), positions)
        self._set(places, BlockReads(self._table[:number, : -(-stop // BLOCK)], stop))
        return self._mask(positions, stop)

    def place_packed(self, segments: Segments) -> None:
        self._set(self._places(segments.rows, segments.positions), BlockReads(self._table, segments.mask.shape[-1]))

    def passed(self) -> None:
        self.reads.clear()

    def _set(self, places: Tensor, reads: BlockReads) -> None:
        self._in_pass.places, self._in_pass.reads, self._in_pass.stop = places, reads, reads.stop

    def _select(self, sequences: slice, columns: slice) -> Any:
        before = self._in_pass.places, self.reads
        table = self._table[sequences, : -(-self.reads.stop // BLOCK)]
        self._set(self._in_pass.places[sequences, columns], BlockReads(table, self.reads.stop))
        return before

    def _restore(self, before: Any) -> None:
        self._set(*before)

    def cut(self, rows: Tensor, counts: Tensor) -> None:
        super().cut(rows, counts)
        held = self._table[rows]
        keep = torch.arange(held.shape[1]) < -(-counts // BLOCK)[:, None]
        self._assign(rows, torch.where(keep, held, 0))

    def _copy_keys(self, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        """Blocks are shared within a cache, whole rows of them; of another cache each is copied once."""
        assert isinstance(giver, BlockKVCache)
        if giver is self:
            return self._assign(target, self._table[source])
        number = -(-stop // BLOCK)
        blocks, which = torch.unique(giver._table[source, :number], return_inverse=True)
        self._assign(target, torch.zeros_like(self._table[target]))
        own = torch.zeros_like(blocks)
        own[blocks > 0] = self._free(int((blocks > 0).sum()))
        for layer, given in zip(self._layers, giver._layers, strict=True):
            layer.copy_blocks(given, blocks[blocks > 0], own[blocks > 0])
        self._assign(target, torch.nn.functional.pad(own[which], (0, self._table.shape[1] - number)))

    def _assign(self, rows: Tensor, blocks: Tensor) -> None:
        """Let rows ``[K]`` have the blocks ``[K, n]``."""
        self._count(blocks.flatten(), self._table[rows].flatten())
        self._table[rows] = blocks

    def _count(self, gained: Tensor, lost: Tensor) -> None:
        """Blocks ``[K]`` that have one reference more each time they stand there, and others that have one less."""
        self._references.index_add_(0, gained, torch.ones_like(gained))
        self._references.index_add_(0, lost, torch.full_like(lost, -1))
        self._references[0] = _SHARED

    def _places(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Where tokens of given rows and columns ``[...]`` are written, in blocks that belong to nobody else.

        :raises CacheTooLarge: if there is no memory for them; the KV cache then is as before.
        """
        numbers = columns // BLOCK
        blocks = self._table[rows, numbers]
        foreign = self._references[blocks] != 1
        if bool(foreign.any()):
            self._own(rows[foreign], numbers[foreign])
            blocks = self._table[rows, numbers]
        return blocks * BLOCK + columns % BLOCK

    def _own(self, rows: Tensor, numbers: Tensor) -> None:
        """Give rows ``[K]`` blocks of their own in place of their blocks ``numbers [K]``, with the same contents."""
        width = self._table.shape[1]
        places = torch.unique(rows * width + numbers)
        before, table = self._table.flatten()[places], self._table
        own = self._free(len(places))
        held = before > 0
        if bool(held.any()):
            for layer in self._layers:
                layer.copy_blocks(layer, before[held], own[held])
        self._count(own, before)
        table.view(-1)[places] = own

    def _free(self, number: int) -> Tensor:
        """So many blocks ``[number]`` that belong to nobody, in rising order; there are more where these do not suffice."""
        free = (self._references == 0).nonzero()[:, 0]
        if len(free) < number:
            total = len(self._references)
            least = total + number - len(free)
            try:
                self._enlarge(max(least, total + total // _SPARE))
            except CacheTooLarge:
                self._enlarge(least)
            free = (self._references == 0).nonzero()[:, 0]
        return free[:number]

    def _enlarge(self, total: int) -> None:
        before = len(self._references)
        try:
            for layer in self._layers:
                layer.grow(total)
        except CacheTooLarge:
            for layer in self._layers:
                layer.shrink(before)
            raise
        with torch.inference_mode(False):
            self._references = torch.nn.functional.pad(self._references, (0, total - before))
        self._in_pass.num_blocks = total
        self.version += 1

    def state(self) -> dict[str, Any]:
        """Tokens, and the blocks that they lie in."""
        used = int(self.lengths.max()) if self.num_rows else 0
        table = self._table[:, : -(-used // BLOCK)]
        blocks = torch.cat([table.new_zeros(1), torch.unique(table[table > 0])])
        layers = [[store[blocks] for store in (layer.keys, layer.values)] if layer.is_initialized else [] for layer in self._layers]
        return self._texts(used) | {"table": torch.searchsorted(blocks, table.contiguous()), "layers": layers}

    def _reset_keys(self) -> None:
        super()._reset_keys()
        self._table, self._references = torch.zeros(0, 0, dtype=torch.long), torch.tensor([_SHARED])
        self._in_pass.num_blocks = 1

    def _load_keys(self, state: dict[str, Any]) -> None:
        stores = [store for layer in state["layers"] for store in layer]
        if "table" not in state or any(store.shape[1] != BLOCK for store in stores):
            return self._load_rows(as_rows(state))
        table = state["table"]
        self._table[:, : table.shape[1]] = table
        self._references = torch.bincount(table.flatten(), minlength=len(stores[0]) if stores else 1)
        self._references[0] = _SHARED
        self._in_pass.num_blocks = len(self._references)
        for layer, (keys, values) in self._given(state["layers"]):
            layer.lazy_initialization(keys.transpose(1, 2), values.transpose(1, 2))
            layer.keys[:], layer.values[:] = keys, values

    def _load_rows(self, layers: list[list[Tensor]]) -> None:
        rows, columns = (self._column < self.lengths[:, None]).nonzero().unbind(1)
        places = self._places(rows, columns)
        for layer, stores in self._given(layers):
            layer.lazy_initialization(*stores)
            for store, states in zip((layer.keys, layer.values), stores, strict=True):
                store.flatten(0, 1)[places] = states[rows, :, columns]

    def _given(self, layers: list[list[Tensor]]) -> list[tuple[BlockLayer, list[Tensor]]]:
        return [(layer, stores) for layer, stores in zip(self._layers, layers, strict=True) if stores]
