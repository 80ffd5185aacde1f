"""Keys and values of many sequences in one block of memory, with a separate write position for each sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .layer import KVCacheLayer, Writes
from .memory_limit import CacheTooLarge
from .packing import Segments

if TYPE_CHECKING:
    from .block_layer import BlockReads

ALIGN = 64
"""Columns are made in multiples of this."""


class KVCache:
    """Keys and values of sequences, and the tokens that they belong to; each row has its own.

    A row's keys depend on its tokens only; hence rows are found, shared and copied by comparing tokens.

    :param int num_layers: layers of the model.
    :param int max_length: longest sequence.
    :ivar Tensor tokens: ``[rows, capacity]`` token ids of each row.
    :ivar Tensor lengths: ``[rows]`` how many of them are valid.
    :ivar int version: changes whenever tensors of the KV cache are replaced by others.
    :ivar Cache hf_cache: what the model's forward is given.
    :ivar reads: what attention has to know to read keys that do not lie in rows, else ``None``.
    """

    _token_type = torch.long

    def __init__(self, num_layers: int, max_length: int, device: torch.device) -> None:
        self.max_length = max_length
        self.version = 0
        self._weighed, self._num_bytes = (-1, False), 0
        self._make_layers(num_layers)
        self.hf_cache = Cache(layers=list(self._layers))
        self.tokens = torch.zeros(0, 0, dtype=self._token_type, device=device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._column = torch.arange(0, device=device)
        self._row = torch.arange(0, device=device)

    def _make_layers(self, number: int) -> None:
        self._writes = Writes()
        self._layers = [KVCacheLayer(self._writes) for _ in range(number)]

    @property
    def reads(self) -> BlockReads | None:
        return None

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def capacity(self) -> int:
        """Columns of each row."""
        return self.tokens.shape[1]

    @property
    def num_bytes(self) -> int:
        now = self.version, self._layers[-1].is_initialized
        if now != self._weighed:  # asked of every KV cache after every step, and hardly ever another one
            self._num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())
            self._weighed = now
        return self._num_bytes

    def _tensors(self) -> list[Tensor]:
        """All memory that it takes."""
        stores = [store for layer in self._layers if layer.is_initialized for store in (layer.keys, layer.values)]
        return [*stores, self.tokens, self.lengths]

    def reserve(self, num_rows: int, columns: int, spare: bool = True) -> None:
        """Make room for at least so many rows and columns.

        :param bool spare: let columns grow geometrically, up to ``max_length``.
        :raises CacheTooLarge: if there is no memory for them; the KV cache then is as before.
        """
        rows, capacity = max(num_rows, self.num_rows), self.capacity
        if columns > capacity:
            capacity = self._capacity_for(columns, spare)
        if (rows, capacity) != (self.num_rows, self.capacity):
            self._resize(rows, capacity)

    def _capacity_for(self, needed: int, spare: bool) -> int:
        return min(self.max_length, -(-(needed + needed // 2 * spare) // ALIGN) * ALIGN)

    def _resize(self, rows: int, capacity: int) -> None:
        self._resize_keys(rows, capacity)
        with torch.inference_mode(False):
            grown = self.tokens.new_zeros(rows, capacity)
            grown[: self.num_rows, : self.capacity] = self.tokens
            self.lengths = torch.nn.functional.pad(self.lengths, (0, rows - self.num_rows))
            self._column = torch.arange(capacity, device=grown.device)
            self._row = torch.arange(rows, device=grown.device)
        self.tokens = grown
        self.version += 1

    def _resize_keys(self, rows: int, capacity: int) -> None:
        try:
            for layer in self._layers:
                layer.grow(rows, capacity)
        except CacheTooLarge:
            for layer in self._layers:
                layer.shrink(self.num_rows, self.capacity)
            raise
        self._writes.num_rows, self._writes.capacity = rows, capacity

    def state(self) -> dict[str, Any]:
        """Tokens, keys and values; without the columns that no row uses."""
        used = int(self.lengths.max()) if self.num_rows else 0
        layers = [[store[:, :, :used] for store in (layer.keys, layer.values)] if layer.is_initialized else [] for layer in self._layers]
        return self._texts(used) | {"layers": layers}

    def _texts(self, used: int) -> dict[str, Any]:
        return {"capacity": self.capacity, "tokens": self.tokens[:, :used], "lengths": self.lengths}

    def load(self, state: dict[str, Any]) -> None:
        """Hold what another KV cache held, in rows and columns as many as it had."""
        rows, used = state["tokens"].shape
        self.tokens, self.lengths = self.tokens.new_zeros(0, 0), self.lengths.new_zeros(0)
        self._reset_keys()
        self._resize(rows, state["capacity"])
        self.tokens[:, :used] = state["tokens"]
        self.lengths = state["lengths"].to(self.lengths)
        self._load_keys(state)

    def _reset_keys(self) -> None:
        for layer in self._layers:
            layer.is_initialized = False

    def _load_keys(self, state: dict[str, Any]) -> None:
        used = state["tokens"].shape[1]
        for layer, stores in zip(self._layers, as_rows(state), strict=True):
            if stores:
                layer.lazy_initialization(*stores)
                layer.keys[:, :, :used], layer.values[:, :, :used] = stores

    def place(self, positions: Tensor, stop: int) -> Tensor:
        """Prepare the next forward pass, of as many sequences as there are in the first rows.

        :param Tensor positions: ``[A, q]`` column of each token.
        :param int stop: one more than the largest position.
        :returns: the attention mask ``[A, 1, q, stop]``.
        """
        writes = self._writes
        writes.first, writes.stop, writes.segments = 0, stop, None
        writes.row_index, writes.columns = self._row[: positions.shape[0]], positions
        return self._mask(positions, stop)

    def _mask(self, positions: Tensor, stop: int) -> Tensor:
        return (self._column[:stop] <= positions[..., None])[:, None]

    def place_packed(self, segments: Segments) -> None:
        """Prepare a forward pass over packed tokens, whose mask they bring along."""
        writes = self._writes
        writes.segments, writes.stop = segments, segments.mask.shape[-1]
        writes.row_index, writes.columns = segments.rows, segments.positions

    def passed(self) -> None:
        """A forward pass is over."""

    @contextmanager
    def part(self, sequences: slice, columns: slice) -> Iterator[None]:
        """For the pass that :meth:`place` prepared to be run on some of its sequences and tokens only."""
        before = self._select(sequences, columns)
        try:
            yield
        finally:
            self._restore(before)

    def _select(self, sequences: slice, columns: slice) -> Any:
        writes = self._writes
        before = writes.row_index, writes.columns
        writes.first = sequences.start
        writes.row_index, writes.columns = writes.row_index[sequences], writes.columns[sequences, columns]
        return before

    def _restore(self, before: Any) -> None:
        writes = self._writes
        (writes.row_index, writes.columns), writes.first = before, 0

    def common_prefix(self, rows: Tensor, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Number of leading tokens that row ``rows[i]`` shares with ``tokens[i]``.

        :param Tensor rows: ``[...]``.
        :param Tensor tokens: ``[..., L]``, padded with negative ids, or valid up to ``lengths [...]``.
        """
        width = min(tokens.shape[-1], self.capacity)
        valid = self.lengths[rows] if lengths is None else torch.minimum(self.lengths[rows], lengths)
        equal = (self.tokens[rows, :width] == tokens[..., :width]) & (self._column[:width] < valid[..., None])
        return equal.cumprod(-1, dtype=torch.int32).sum(-1)

    def copy(self, source: Tensor, target: Tensor, counts: Tensor) -> None:
        """Give rows ``target [K]`` the first ``counts [K]`` tokens of rows ``source [K]``; no target may be a source.

        Columns that all pairs already share, such as a common prompt, are left alone.
        """
        if len(target):
            shared = self.common_prefix(target, self.tokens[source], counts)
            self._copy_columns(self, source, target, *torch.stack([shared.min(), counts.max()]).tolist())
            self.cut(target, counts)

    def cut(self, rows: Tensor, counts: Tensor) -> None:
        """Let rows ``[K]`` hold their first ``counts [K]`` tokens and no others."""
        self.lengths[rows] = counts

    def forget(self, first: int) -> None:
        """Let the rows from ``first`` on hold nothing."""
        rows = self._row[first:]
        self.cut(rows, torch.zeros_like(rows))

    def swap(self, first: Tensor, second: Tensor) -> None:
        """Exchange rows ``first [K]`` and ``second [K]``, which have no row in common."""
        if len(first):
            shared = self.common_prefix(first, self.tokens[second], self.lengths[second])
            stop = torch.maximum(self.lengths[first], self.lengths[second])
            source, target = torch.cat([first, second]), torch.cat([second, first])
            self._copy_columns(self, source, target, *torch.stack([shared.min(), stop.max()]).tolist())
            self.lengths[target] = self.lengths[source]

    def take(self, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        """Give rows ``target [K]`` the texts of rows ``source [K]`` of a cache, another one or the same, which end before ``stop``.

        :param int start: columns that they already share.
        """
        self._copy_columns(giver, source, target, start, stop)
        self.cut(target, giver.lengths[source])

    def _copy_columns(self, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        if start >= stop:
            return
        self.tokens[target, start:stop] = giver.tokens[source, start:stop]
        self._copy_keys(giver, source, target, start, stop)

    def _copy_keys(self, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        for layer, given in zip(self._layers, giver._layers, strict=True):
            if given.is_initialized:
                if not layer.is_initialized:
                    layer.lazy_initialization(given.keys, given.values)
                from_, to = source.to(layer.device), target.to(layer.device)
                for store, states in ((layer.keys, given.keys), (layer.values, given.values)):
                    store[to, :, start:stop] = states[from_, :, start:stop]


def as_rows(state: dict[str, Any]) -> list[list[Tensor]]:
    """Keys and values ``[rows, kv_heads, used, head_dim]`` of each layer that a KV cache held, in rows or in blocks."""
    if "table" not in state:
        layers: list[list[Tensor]] = state["layers"]
        return layers
    table, used = state["table"], state["tokens"].shape[1]
    return [[store[table].flatten(1, 2)[:, :used].transpose(1, 2) for store in layer] for layer in state["layers"]]
