"""Tokens that rows of a KV cache lack, and the outputs that are wanted of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cache import KVCache
from .common_prefix import common_tokens
from .packing import Segment, Segments


class Wanted(NamedTuple):
    """Tokens of a pass whose outputs are wanted.

    :ivar Tensor token: ``[K]`` their places in the pass.
    :ivar Tensor member: ``[K]`` the sequence that each belongs to.
    :ivar Tensor column: ``[K]`` which of the sequence's outputs it is.
    """

    token: Tensor
    member: Tensor
    column: Tensor


class Append:
    """Sequences that are to be run from ``held [u]`` tokens on in rows of a KV cache; see :meth:`CacheEngine.append`.

    :param int owner: number of the KV cache, in a pass over several.
    :ivar list waiting: what has not been run, in order of starts.
    :ivar int shared: leading tokens that the sequences have in common and that are worth reading once.
    :ivar Tensor outputs: ``[u, K, V]``, once there are any.
    """

    def __init__(self, owner: int, cache: KVCache, rows: Tensor, tokens: Tensor, lengths: Tensor, held: Tensor, wanted: Tensor) -> None:
        self.cache, self._rows, self._tokens, self._lengths, self._wanted = cache, rows, tokens, lengths, wanted
        self._places, starts, stops = torch.stack([rows, held, lengths]).tolist()
        self.size, self.longest = sum(stops) - sum(starts), max(stops)
        self.waiting = [Segment(*each, owner) for each in zip(self._places, starts, stops, strict=True)]
        self.waiting.sort(key=lambda segment: segment.start)
        self.shared = common_tokens(cache, rows, self.longest)
        self.outputs = torch.empty(0)
        self._by_row: Tensor | None = None

    @property
    def one_each(self) -> bool:
        """Whether each sequence lacks a single token."""
        return self.size == len(self.waiting)

    @property
    def in_first_rows(self) -> bool:
        """Whether the sequences have the first rows, in their order."""
        return self._places == list(range(len(self._places)))

    def ids(self, segments: Segments) -> Tensor:
        """Token ids ``[T]`` of some of its segments."""
        return self._tokens[self._members(segments), segments.positions]

    def wanted_of(self, segments: Segments) -> Wanted:
        """Outputs that are wanted of some of its segments."""
        member = self._members(segments)
        token, column = (self._wanted[member] == segments.positions[:, None]).nonzero(as_tuple=True)
        return Wanted(token, member[token], column)

    def _members(self, segments: Segments) -> Tensor:
        if self._by_row is None:
            self._by_row = torch.zeros(self.cache.num_rows, dtype=torch.long, device=self._rows.device)
            self._by_row[self._rows] = torch.arange(len(self._rows), device=self._rows.device)
        return self._by_row[segments.rows]

    def put(self, place: Wanted, found: Tensor) -> None:
        """Outputs ``[K, V]`` of tokens."""
        if self.outputs.dim() == 1:
            self.outputs = found.new_zeros(*self._wanted.shape, found.shape[-1])
        self.outputs[place.member, place.column] = found

    def finish(self) -> None:
        """The rows hold their sequences."""
        held = self.cache.tokens
        held[self._rows, : self._tokens.shape[1]] = self._tokens.to(held.dtype)
        self.cache.lengths[self._rows] = self._lengths
