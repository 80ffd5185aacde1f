"""Keys and values of many sequences in one block of memory, with a separate write position for each sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .layer import KVCacheLayer, Writes
from .memory_limit import CacheTooLarge
from .packing import Segments

_ALIGN = 64


class KVCache:
    """Keys and values of sequences, and the tokens that they belong to.

    A row's keys depend on its tokens only; hence rows are found, shared and copied by comparing tokens.

    :param int num_layers: layers of the model.
    :param int max_length: longest sequence.
    :ivar Tensor tokens: ``[rows, capacity]`` token ids of each row.
    :ivar Tensor lengths: ``[rows]`` how many of them are valid.
    :ivar int version: changes whenever tensors of the KV cache are replaced by others.
    :ivar Cache hf_cache: what the model's forward is given.
    """

    def __init__(self, num_layers: int, max_length: int, device: torch.device) -> None:
        self.max_length = max_length
        self.version = 0
        self._weighed, self._num_bytes = (-1, False), 0
        self._writes = Writes()
        self._layers = [KVCacheLayer(self._writes) for _ in range(num_layers)]
        self.hf_cache = Cache(layers=self._layers)
        self.tokens = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._column = torch.arange(0, device=device)
        self._row = torch.arange(0, device=device)

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
            stores = [store for layer in self._layers if layer.is_initialized for store in (layer.keys, layer.values)]
            self._num_bytes = sum(store.numel() * store.element_size() for store in [*stores, self.tokens, self.lengths])
            self._weighed = now
        return self._num_bytes

    def reserve(self, num_rows: int, columns: int, spare: bool = True) -> None:
        """Make room for at least so many rows and columns.

        :param bool spare: let columns grow geometrically, up to ``max_length``.
        :raises CacheTooLarge: if there is no memory for them; the KV cache then is as before.
        """
        rows, capacity = max(num_rows, self.num_rows), self.capacity
        if columns > capacity:
            capacity = min(self.max_length, -(-(columns + columns // 2 * spare) // _ALIGN) * _ALIGN)
        if (rows, capacity) != (self.num_rows, self.capacity):
            self._resize(rows, capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        try:
            for layer in self._layers:
                layer.grow(rows, capacity)
        except CacheTooLarge:
            for layer in self._layers:
                layer.shrink(self.num_rows, self.capacity)
            raise
        with torch.inference_mode(False):
            grown = self.tokens.new_zeros(rows, capacity)
            grown[: self.num_rows, : self.capacity] = self.tokens
            self.lengths = torch.nn.functional.pad(self.lengths, (0, rows - self.num_rows))
            self._column = torch.arange(capacity, device=grown.device)
            self._row = torch.arange(rows, device=grown.device)
        self.tokens = grown
        self._writes.num_rows, self._writes.capacity = rows, capacity
        self.version += 1

    def state(self) -> dict[str, Any]:
        """Tokens, keys and values; without the columns that no row uses."""
        used = int(self.lengths.max()) if self.num_rows else 0
        layers = [[store[:, :, :used] for store in (layer.keys, layer.values)] if layer.is_initialized else [] for layer in self._layers]
        return {"capacity": self.capacity, "tokens": self.tokens[:, :used], "lengths": self.lengths, "layers": layers}

    def load(self, state: dict[str, Any]) -> None:
        """Hold what another KV cache held, in rows and columns as many as it had."""
        rows, used = state["tokens"].shape
        self.tokens, self.lengths = self.tokens.new_zeros(0, 0), self.lengths.new_zeros(0)
        for layer in self._layers:
            layer.is_initialized = False
        self._resize(rows, state["capacity"])
        self.tokens[:, :used] = state["tokens"]
        self.lengths = state["lengths"].to(self.lengths)
        for layer, stores in zip(self._layers, state["layers"], strict=True):
            if stores:
                layer.lazy_initialization(*stores)
                layer.keys[:, :, :used], layer.values[:, :, :used] = stores

    def place(self, rows: Tensor | None, positions: Tensor, stop: int) -> Tensor:
        """Prepare the next forward pass.

        :param rows: ``[A]`` rows of the sequences; ``None`` for the first A rows, which needs no copy.
        :param Tensor positions: ``[A, q]`` column of each token.
        :param int stop: one more than the largest position.
        :returns: the attention mask ``[A, 1, q, stop]``.
        """
        writes = self._writes
        writes.rows, writes.first, writes.stop, writes.segments = rows, 0, stop, None
        writes.row_index = self._row[: positions.shape[0]] if rows is None else rows
        writes.columns = positions
        return (self._column[:stop] <= positions[..., None])[:, None]

    def place_packed(self, segments: Segments) -> None:
        """Prepare a forward pass over packed tokens, whose mask they bring along."""
        writes = self._writes
        writes.segments, writes.stop = segments, segments.mask.shape[-1]
        writes.row_index, writes.columns = segments.rows, segments.positions

    @contextmanager
    def part(self, sequences: slice, columns: slice) -> Iterator[None]:
        """For the pass that :meth:`place` prepared to be run on some of its sequences and tokens only."""
        writes = self._writes
        whole = writes.rows, writes.row_index, writes.columns
        writes.rows, writes.first = None if writes.rows is None else writes.rows[sequences], sequences.start
        writes.row_index, writes.columns = writes.row_index[sequences], writes.columns[sequences, columns]
        try:
            yield
        finally:
            (writes.rows, writes.row_index, writes.columns), writes.first = whole, 0

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
            self.lengths[target] = counts

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
        self.lengths[target] = giver.lengths[source]

    def _copy_columns(self, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        if start >= stop:
            return
        self.tokens[target, start:stop] = giver.tokens[source, start:stop]
        for layer, given in zip(self._layers, giver._layers, strict=True):
            if given.is_initialized:
                if not layer.is_initialized:
                    layer.lazy_initialization(given.keys, given.values)
                from_, to = source.to(layer.device), target.to(layer.device)
                for store, states in ((layer.keys, given.keys), (layer.values, given.values)):
                    store[to, :, start:stop] = states[from_, :, start:stop]
