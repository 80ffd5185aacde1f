"""Slabs and forward passes of one model: runs what the rows of a slab lack of token sequences, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..inference.cost import count
from .cache import KVSlab
from .memory_limit import BatchLimit, CacheTooLarge, is_out_of_memory
from .packing import Segment, Segments, take
from .pool import SlabPool
from .seating import Seating

_FORWARD_TOKENS = 8192
"""Tokens of one forward pass; bounds the memory of its activations."""

_MASK_ELEMENTS = 2**25
"""Entries of one attention mask."""

Forward = Callable[..., Tensor]


class PrefixEngine:
    """Slabs and forward passes of one model.

    :param forward: called with ``input_ids``, ``attention_mask``, ``position_ids``, ``cache``, ``use_cache``,
        ``logits_to_keep``, a number or a list of columns, and ``segments`` or ``shared`` for the attention function; gives outputs of the
        columns to keep.
    :param str name: prefix of the counters, e.g. ``lm`` for ``lm_forwards`` and ``lm_seconds``.
    :param str tokens_counter: counter of the tokens run by :meth:`complete`.
    :param int num_layers: layers of the model.
    :param int max_length: longest sequence.
    :param int cache_bytes: bound on the memory of all slabs; the one in use may exceed it.
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
    ) -> None:
        self.forward = forward
        self._tokens_counter = tokens_counter
        self._counters = (f"{name}_forwards", f"{name}_seconds")
        self.device = device
        self.pool = SlabPool(lambda: KVSlab(num_layers, max_length, device), cache_bytes)
        self.at_once = BatchLimit("tokens of a forward pass")

    def run(self, slab: KVSlab, ids: Tensor, positions: Tensor, mask: Tensor, keep: int, shared: int = 0) -> Tensor:
        """One forward pass over tokens ``[A, q]`` that ``slab.place`` has made room for: outputs ``[A, keep, V]``.

        :param int shared: leading tokens that the rows have in common and that are worth reading once.

        Where memory runs out, slabs that nobody is using are released, and then the pass is run in parts, later ones too.

        :raises MemoryError: if it does not even allow a pass over one token.
        """
        while True:
            size = self.at_once.allowed(ids.numel())
            try:
                if size == ids.numel():
                    return self._pass(slab, ids, positions, mask, keep, **({"shared": shared} if shared else {}))
                return self._in_parts(slab, ids, positions, mask, keep, size)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, CacheTooLarge) or not is_out_of_memory(error):
                    raise
                if not self.pool.release_others(slab):
                    self.at_once.halve(size, error)

    def _pass(self, slab: KVSlab, ids: Tensor, positions: Tensor, mask: Tensor, keep: int | list[int], **more: Any) -> Tensor:
        """
        :param keep: the last so many outputs of each lane, or those of given columns.
        :param more: what :func:`~ppl_llm.kv_cache.attention.packed_sdpa` is to know.
        """
        began = time.perf_counter()
        output = self.forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=slab.cache,
            use_cache=True,
            logits_to_keep=keep,
            **more,
        ).to(self.device)
        self.counted(began)
        return output

    def counted(self, began: float) -> None:
        """Count a forward pass whose call began at a ``time.perf_counter()``."""
        # Wall time of the call: on an accelerator the work may still be queued, waiting for it here would cost more than it tells.
        count(**{self._counters[0]: 1, self._counters[1]: time.perf_counter() - began})

    def _in_parts(self, slab: KVSlab, ids: Tensor, positions: Tensor, mask: Tensor, keep: int, size: int) -> Tensor:
        """The same over some lanes at a time; or one lane, and some of its tokens, as later ones see the keys of those before."""
        total, width = ids.shape
        at_once = max(1, size // width)
        lanes = [slice(begin, min(begin + at_once, total)) for begin in range(0, total, at_once)]
        columns = [slice(begin, min(begin + size, width)) for begin in range(0, width, size)]
        outputs = []
        for some in lanes:
            ends = []
            for piece in columns:
                wanted = min(piece.stop - piece.start, piece.stop - (width - keep))
                with slab.part(some, piece):
                    output = self._pass(slab, ids[some, piece], positions[some, piece], mask[some, :, piece], max(1, wanted))
                if wanted > 0:
                    ends.append(output)
            outputs.append(torch.cat(ends, 1))
        return torch.cat(outputs)

    def reserve(self, slab: KVSlab, num_rows: int, columns: int) -> None:
        """Make room in a slab, if need be by releasing those that nobody is using, and without room for more.

        :raises CacheTooLarge: if that is not enough; the slab then is as before.
        """
        try:
            slab.reserve(num_rows, columns)
        except CacheTooLarge:
            self.pool.release_others(slab)
            slab.reserve(num_rows, columns, spare=False)

    def complete(self, seating: Seating, wanted: Tensor, max_rows: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the missing tokens.

        :param Tensor wanted: ``[U, K]`` positions of the tokens whose outputs are wanted; of those before ``seating.reused`` the outputs
            mean nothing.
        :param max_rows: sequences run at a time, which bounds the memory of outputs.
        :returns: pairs of rows ``[u]`` and outputs ``[u, K, V]``.
        """
        rows = torch.arange(seating.num_rows, device=self.device)
        at_once = max_rows or len(rows)
        for begin in range(0, len(rows), at_once):
            at = slice(begin, begin + at_once)
            outputs = self.append(seating.slab, rows[at], seating.tokens[at], seating.lengths[at], seating.reused[at], wanted[at])
            yield rows[at], outputs
        self.pool.trim()

    def append(self, slab: KVSlab, rows: Tensor, tokens: Tensor, lengths: Tensor, held: Tensor, wanted: Tensor) -> Tensor:
        """Run sequences from ``held [u]`` tokens on in given rows of a slab, at least one token each: outputs ``[u, K, V]``."""
        places, starts, stops = torch.stack([rows, held, lengths]).tolist()
        count(**{self._tokens_counter: sum(stops) - sum(starts)})
        one_each = all(stop == start + 1 for start, stop in zip(starts, stops, strict=True))
        fits = len(places) <= min(_FORWARD_TOKENS, _MASK_ELEMENTS // max(stops))
        if one_each and fits and places == list(range(len(places))):
            positions = held[:, None]
            mask = slab.place(None, positions, max(stops))
            outputs = self.run(slab, tokens.gather(1, positions), positions, mask, 1).expand(-1, wanted.shape[1], -1)
        else:
            waiting = [Segment(place, start, stop) for place, start, stop in zip(places, starts, stops, strict=True)]
            by_row = torch.zeros(slab.num_rows, dtype=torch.long, device=self.device)
            by_row[rows] = torch.arange(len(rows), device=self.device)
            outputs = self._packed(slab, waiting, tokens, by_row, wanted)
        slab.tokens[rows, : tokens.shape[1]] = tokens
        slab.lengths[rows] = lengths
        return outputs

    def _packed(self, slab: KVSlab, waiting: list[Segment], tokens: Tensor, by_row: Tensor, wanted: Tensor) -> Tensor:
        """Forward passes without padding, each over as many tokens as memory allows: outputs ``[u, K, V]``.

        :param waiting: what to run in each row, at least one token.
        :param Tensor by_row: the index into ``tokens`` and ``wanted`` of each row in use.
        """
        waiting = sorted(waiting, key=lambda segment: segment.start)
        outputs: Tensor | None = None
        while waiting:
            limit = self.at_once.allowed(_FORWARD_TOKENS)
            taken, left = take(waiting, limit, _MASK_ELEMENTS)
            segments = Segments(taken, self.device)
            sequence = by_row[segments.rows]
            ids = tokens[sequence, segments.positions]
            asked = wanted[sequence] == segments.positions[:, None]
            token, column = asked.nonzero(as_tuple=True)
            slab.place_packed(segments)
            try:
                found = self._pass(slab, ids[None], segments.positions[None], segments.mask, token.tolist(), segments=segments)[0]
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, CacheTooLarge) or not is_out_of_memory(error):
                    raise
                if not self.pool.release_others(slab):
                    self.at_once.halve(len(ids), error)
                continue
            if outputs is None:
                outputs = found.new_zeros(*wanted.shape, found.shape[-1])
            outputs[sequence[token], column] = found
            waiting = left
        assert outputs is not None
        return outputs
