"""KV caches and forward passes of one model: runs what the rows of a KV cache lack of token sequences, and nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..inference.cost import count
from ..threads import SpinWatch
from .append import Append
from .block_cache import BlockKVCache
from .cache import KVCache
from .memory_limit import BatchLimit, CacheTooLarge, is_out_of_memory
from .packing import Segment, Segments, take
from .pool import KVCachePool

_FORWARD_TOKENS = 8192
"""Tokens of one forward pass; bounds the memory of its activations."""

_MASK_ELEMENTS = 2**25
"""Entries of one attention mask."""

Forward = Callable[..., Tensor]
T = TypeVar("T")


class CacheEngine:
    """KV caches and forward passes of one model.

    :param forward: called with ``input_ids``, ``attention_mask``, ``position_ids``, ``cache``, ``use_cache``,
        ``logits_to_keep``, a number or a list of columns, and ``segments`` or ``shared`` for the attention function; gives outputs of the
        columns to keep.
    :param str name: prefix of the counters, e.g. ``lm`` for ``lm_forwards`` and ``lm_seconds``.
    :param str tokens_counter: counter of the tokens run by :meth:`complete`.
    :param int num_layers: layers of the model.
    :param int max_length: longest sequence.
    :param int cache_bytes: bound on the memory of all KV caches; the one in use may exceed it.
    :param bool blocks: whether sequences of a KV cache share blocks of keys, see
        :class:`~ppl_llm.kv_cache.block_cache.BlockKVCache`; else each has a row of its own.
    :ivar BatchLimit at_once: tokens of one forward pass that memory is known to allow.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        name: str,
        tokens_counter: str,
        num_layers: int,
        max_length: int,
        cache_bytes: int,
        device: torch.device,
        blocks: bool = False,
    ) -> None:
        self.forward = forward
        self.tokens_counter, self.counters = tokens_counter, (f"{name}_forwards", f"{name}_seconds")
        self.device = device
        self._sizes = num_layers, max_length, device
        self.pool = KVCachePool(partial(BlockKVCache if blocks else KVCache, *self._sizes), cache_bytes)
        self.at_once = BatchLimit("tokens of a forward pass")
        self._watch = SpinWatch() if device.type == "cpu" else None

    def giving(self, forward: Forward) -> CacheEngine:
        """The same KV caches of the same model, with other outputs."""
        other = copy.copy(self)
        other.forward = forward
        return other

    def use_rows(self) -> None:
        """Keep each sequence in a row of its own from now on, which passes that are captured and replayed need."""
        self.pool.make = partial(KVCache, *self._sizes)
        if any(type(cache) is not KVCache for cache in self.pool.caches):
            self.pool.clear()

    @torch.no_grad()
    def run(self, cache: KVCache, ids: Tensor, positions: Tensor, mask: Tensor, keep: int, shared: int = 0) -> Tensor:
        """One forward pass over tokens ``[A, q]`` that ``cache.place`` has made room for: outputs ``[A, keep, V]``.

        :param int shared: leading tokens that the rows have in common and that are worth reading once.

        Where memory runs out, KV caches that nobody is using are released, and then the pass is run in parts, later ones too.

        :raises MemoryError: if it does not even allow a pass over one token.
        """
        while True:
            size = self.at_once.allowed(ids.numel())
            try:
                if size == ids.numel():
                    return self._pass(cache, ids, positions, mask, keep, **({"shared": shared} if shared else {}))
                return self._in_parts(cache, ids, positions, mask, keep, size)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, CacheTooLarge) or not is_out_of_memory(error):
                    raise
                if not self.pool.release_others(cache):
                    self.at_once.halve(size, error)

    def _pass(self, cache: KVCache, ids: Tensor, positions: Tensor, mask: Tensor, keep: int | list[int], **more: Any) -> Tensor:
        """
        :param keep: the last so many outputs of each sequence, or those of given columns.
        :param more: what :func:`~ppl_llm.kv_cache.attention.packed_sdpa` is to know.
        """
        began = time.perf_counter()
        if cache.reads is not None:
            more["blocks"] = cache.reads
        output = self.forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=cache.hf_cache,
            use_cache=True,
            logits_to_keep=keep,
            **more,
        ).to(self.device)
        cache.passed()
        seconds = self.counted(began)
        if self._watch is not None:
            self._watch.passed(ids.numel(), mask.shape[-1], seconds)
        return output

    def counted(self, began: float) -> float:
        """Count a forward pass whose call began at a ``time.perf_counter()``, and give its seconds."""
        # Wall time of the call: on an accelerator the work may still be queued, waiting for it here would cost more than it tells.
        seconds = time.perf_counter() - began
        count(**{self.counters[0]: 1, self.counters[1]: seconds})
        return seconds

    def _in_parts(self, cache: KVCache, ids: Tensor, positions: Tensor, mask: Tensor, keep: int, size: int) -> Tensor:
        """The same over some sequences at a time; or one sequence, and some of its tokens, as later ones see the keys of those before."""
        total, width = ids.shape
        at_once = max(1, size // width)
        sequences = [slice(begin, min(begin + at_once, total)) for begin in range(0, total, at_once)]
        columns = [slice(begin, min(begin + size, width)) for begin in range(0, width, size)]
        outputs = []
        for some in sequences:
            ends = []
            for piece in columns:
                wanted = min(piece.stop - piece.start, piece.stop - (width - keep))
                with cache.part(some, piece):
                    output = self._pass(cache, ids[some, piece], positions[some, piece], mask[some, :, piece], max(1, wanted))
                if wanted > 0:
                    ends.append(output)
            outputs.append(torch.cat(ends, 1))
        return torch.cat(outputs)

    def reserve(self, cache: KVCache, num_rows: int, columns: int) -> None:
        """Make room in a KV cache, if need be by releasing those that nobody is using, and without room for more.

        :raises CacheTooLarge: if that is not enough; the KV cache then is as before.
        """
        try:
            cache.reserve(num_rows, columns)
        except CacheTooLarge:
            self.pool.release_others(cache)
            cache.reserve(num_rows, columns, spare=False)

    def place(self, cache: KVCache, positions: Tensor, stop: int) -> Tensor:
        """:meth:`KVCache.place`, if need be by releasing KV caches that nobody is using, and what other rows of this one hold.

        :raises CacheTooLarge: if that is not enough.
        """
        try:
            return self.make_room(cache, partial(cache.place, positions, stop))
        except CacheTooLarge:
            cache.forget(len(positions))
            return cache.place(positions, stop)

    def make_room(self, cache: KVCache, place: Callable[[], T]) -> T:
        """What a call gives that needs memory in a KV cache, if need be after KV caches that nobody is using have been released."""
        try:
            return place()
        except CacheTooLarge:
            self.pool.release_others(cache)
            return place()

    @torch.no_grad()
    def append(self, cache: KVCache, rows: Tensor, tokens: Tensor, lengths: Tensor, held: Tensor, wanted: Tensor) -> Tensor:
        """Run sequences from ``held [u]`` tokens on in given rows of a cache, at least one token each.

        Tokens are packed without padding, as many in each forward pass as memory allows; one token of each of the first rows needs no
        packing.

        :param Tensor wanted: ``[u, K]`` positions of the tokens whose outputs are wanted.
        :returns: outputs ``[u, K, V]``.
        """
        append = Append(0, cache, rows, tokens, lengths, held, wanted)
        count(**{self.tokens_counter: append.size})
        fits = len(rows) <= min(_FORWARD_TOKENS, _MASK_ELEMENTS // append.longest)
        if append.one_each and fits and append.in_first_rows:
            positions = held[:, None]
            mask = self.place(cache, positions, append.longest)
            outputs = self.run(cache, tokens.gather(1, positions), positions, mask, 1, append.shared).expand(-1, wanted.shape[1], -1)
            append.finish()
            return outputs
        while append.waiting:
            taken, left = self.packed(append.waiting)
            segments = Segments(taken, self.device)
            ids, place = append.ids(segments), append.wanted_of(segments)
            self.make_room(cache, partial(cache.place_packed, segments))
            try:
                more = {"segments": segments} | ({"shared": append.shared} if append.shared else {})
                found = self._pass(cache, ids[None], segments.positions[None], segments.mask, place.token.tolist(), **more)[0]
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, CacheTooLarge) or not is_out_of_memory(error):
                    raise
                if not self.pool.release_others(cache):
                    self.at_once.halve(len(ids), error)
                continue
            append.put(place, found)
            append.waiting = left
        append.finish()
        return append.outputs

    def packed(self, waiting: list[Segment]) -> tuple[list[Segment], list[Segment]]:
        """What the next forward pass may run, and what is left."""
        return take(waiting, self.at_once.allowed(_FORWARD_TOKENS), _MASK_ELEMENTS)
