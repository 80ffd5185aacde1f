"""Next-token logits of sequences that live in the first rows of a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ...context import Context
from ...context_cache import CacheEntry, CacheKey, find_entry
from ...kv_cache.attention import pays
from ...kv_cache.cache import KVCache
from ...kv_cache.engine import CacheEngine
from ...kv_cache.joint_pass import Part
from ...kv_cache.lookup import CacheLookup, look_up
from .decoder import with_steps

_LOGITS_ELEMENTS = 2**24
"""Logits ``[a, M, V]`` made at a time when given steps are scored (64 MiB); a single step may exceed it."""


class CachedLogits:
    """Logits of a model whose keys and values are kept between steps (a :class:`~ppl_llm.lm.decoding.decoder.DecoderSource`).

    :param CacheEngine engine: of the model.
    :param CacheKey key: of the entries that tell where the sequences of a context lie.
    :param int vocab_size: bounds the logits made at a time.
    """

    def __init__(self, engine: CacheEngine, key: CacheKey, vocab_size: int) -> None:
        self.engine, self._key, self._vocab_size = engine, key, vocab_size

    def decoder(self, context: Context, active: Tensor) -> CachedDecoder:
        tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[active]
        lengths = context.lengths.flatten()[active]
        lookup, rows = self._look_up(context, active, tokens, lengths, lengths - 1, len(active))
        logits = lookup.complete(lookup.lengths[:, None] - 1)[:, 0]
        row_of = lookup.spread()
        rows[active] = row_of
        by_row = row_of.argsort()
        if lookup.num_rows < len(active):
            logits = logits[lookup.row_of[by_row]]
        longest = int(lookup.lengths.max())
        shared = _common_tokens(lookup.cache, len(active), longest)
        return CachedDecoder(self.engine, lookup.cache, active[by_row], rows, logits, longest, shared)

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        whole, before, ends = with_steps(context, active, tokens)
        lookup, rows = self._look_up(context, active, whole, ends, before - 1, 0)
        rows[active] = lookup.row_of
        width = tokens.shape[1]
        column = torch.arange(width, device=tokens.device)
        at_once = max(1, _LOGITS_ELEMENTS // (width * self._vocab_size))
        place = torch.zeros(lookup.num_rows, dtype=torch.long, device=tokens.device)
        wanted = lookup.lengths[:, None] - width + column  # a row may stand for sequences that began their step at different places
        for members, logits in lookup.complete_in_parts(wanted, at_once):
            place[members] = torch.arange(len(members), device=tokens.device)
            for some in torch.isin(lookup.row_of, members).nonzero()[:, 0].split(at_once):
                at = (before + width - 1 - ends)[some, None] + column
                mine = logits[place[lookup.row_of[some]]]
                yield some, mine.gather(1, at.clamp(max=width - 1)[..., None].expand(-1, -1, logits.shape[2]))

    def _look_up(
        self, context: Context, active: Tensor, tokens: Tensor, lengths: Tensor, known: Tensor, num_rows: int
    ) -> tuple[CacheLookup, Tensor]:
        """Find sequences, and leave a cache entry with a table of their rows for the caller to fill."""
        tokens = tokens[:, : int(lengths.max())]
        prompt_lengths = context.prompt_lengths.flatten()[active]
        entry = find_entry(context.cache_entries, self._key, self.engine.pool.adopt)
        lookup = look_up(self.engine, entry, active, tokens, lengths, known, prompt_lengths, num_rows)
        rows = torch.full((context.lengths.numel(),), -1, device=tokens.device)
        context.cache_entries[self._key] = CacheEntry(self.engine.pool.lease(lookup.cache), {"rows": rows.view(context.batch_shape)})
        return lookup, rows

    def release(self) -> None:
        self.engine.pool.clear()


class CachedDecoder:
    """A :class:`~ppl_llm.lm.decoding.decoder.Decoder` whose sequences always have the first rows: attention reads a view of the KV cache.

    :param KVCache cache: also an attribute.
    :param Tensor sequences: ``[A]`` the flat index of each row's sequence.
    :param Tensor rows: ``[total]`` a table of the row of each flat index, kept up to date in place.
    :param Tensor logits: ``[A, V]``.
    :param int longest: bound on the tokens of any sequence; also an attribute.
    :param int shared: leading tokens that all rows have in common and that are worth reading once.
    """

    def __init__(
        self, engine: CacheEngine, cache: KVCache, sequences: Tensor, rows: Tensor, logits: Tensor, longest: int, shared: int = 0
    ) -> None:
        self._engine, self.cache, self._rows = engine, cache, rows
        self._order = self.sequences = sequences
        self.logits, self.longest, self._shared = logits, longest, shared

    def reserved(self) -> AbstractContextManager[None]:
        return self._engine.pool.reserved(self.cache)

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        part = self.prepare(tokens)
        self.finish(self._engine.run(part.cache, part.ids, part.positions, part.mask, 1, part.shared)[:, -1], alive)

    def prepare(self, tokens: Tensor) -> Part:
        """The forward pass of :meth:`advance`, to be run before anything else in this KV cache; :meth:`finish` must follow."""
        rows = len(tokens)
        cache, longest = self.grow(rows)
        positions = cache.lengths[:rows, None].clone()
        cache.tokens.scatter_(1, positions, tokens[:, None])
        shared = self._shared if pays(positions.device, rows, self._shared) else 0
        return Part(cache, tokens[:, None], positions, cache.place(None, positions, longest), shared)

    def finish(self, logits: Tensor, alive: Tensor) -> None:
        self.logits = logits
        self.cache.lengths[: len(alive)].add_(alive)

    def grow(self, rows: int) -> tuple[KVCache, int]:
        """Make room for one more token in each of the first rows: the KV cache, and a bound on the tokens of any sequence."""
        # It needs no reading back from the device: every row may have grown by one.
        self.longest = min(self.longest + 1, self.cache.max_length)
        self._engine.reserve(self.cache, rows, self.longest)
        return self.cache, self.longest

    def fill_up(self, rows: int) -> None:
        """Let further rows take part in passes whatever they hold: they exist, and have a column behind their end to write to."""
        self._engine.reserve(self.cache, rows, self.longest)
        self.cache.lengths[len(self.sequences) : rows].clamp_(max=self.cache.capacity - 1)

    def keep(self, alive: Tensor) -> None:
        # Looked at once, so that the host need not wait for each of these figures.
        device = self._order.device
        number, holes, movers = close_ranks(alive.cpu())
        places, moved = torch.cat([holes, movers]).to(device), torch.cat([movers, holes]).to(device)
        self.cache.swap(places[: len(holes)], moved[: len(holes)])
        self._order = self._order.index_copy(0, places, self._order[moved])
        self._rows[self._order[places]] = places
        self.sequences = self._order[:number]
        self.longest = int(self.cache.lengths[:number].max())


def close_ranks(alive: Tensor) -> tuple[int, Tensor, Tensor]:
    """How to bring the rows that are alive to the front.

    :param Tensor alive: ``[A]``, on the host.
    :returns: how many there are, the dead rows ``[K]`` among the first so many, and the living rows ``[K]`` behind these.
    """
    number = int(alive.sum())
    return number, (~alive[:number]).nonzero()[:, 0], number + alive[number:].nonzero()[:, 0]


def _common_tokens(cache: KVCache, rows: int, longest: int) -> int:
    """Leading tokens that the first rows share, now and for the rest of the step; 0 if it cannot pay to read their keys once."""
    if not pays(cache.tokens.device, rows, longest):
        return 0
    texts = cache.tokens[:rows, : int(cache.lengths[:rows].min())]
    return int((texts == texts[:1]).all(0).cumprod(0).sum())
