"""Next-token logits of sequences that live in the first rows of a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ...context import PAD, Context
from ...context_cache import CacheEntry, CacheKey, find_entry
from ...inference.cost import count
from ...kv_cache.cache import KVCache
from ...kv_cache.common_prefix import common_tokens, pays
from ...kv_cache.engine import CacheEngine
from ...kv_cache.hidden import HiddenForward
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
    :param HiddenForward hidden: of the model, for those who ask for hidden states.
    """

    def __init__(self, engine: CacheEngine, key: CacheKey, vocab_size: int, hidden: HiddenForward) -> None:
        self.engine, self._key, self._vocab_size = engine, key, vocab_size
        self.hidden, self._hidden_engine, self._states_key = hidden, engine.giving(hidden), CacheKey(f"{key.label} states")

    def decoder(self, context: Context, active: Tensor, wait: bool = False) -> CachedDecoder:
        tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[active]
        lengths = context.lengths.flatten()[active]
        states = self._states_at_end(context, active, lengths)
        known = lengths - 1 if states is None else lengths
        lookup, rows = self._look_up(self.engine, context, active, tokens, lengths, known, len(active))
        if states is not None and bool((lookup.reused < lookup.lengths).any()):
            states, lookup.reused = None, torch.minimum(lookup.reused, lookup.lengths - 1)
        wait = wait and states is None and bool((lookup.reused == lookup.lengths - 1).all())
        logits = lookup.complete(lookup.lengths[:, None] - 1)[:, 0] if states is None and not wait else None
        row_of = lookup.spread()
        rows[active] = row_of
        by_row = row_of.argsort()
        if states is not None:
            logits = self.hidden.logits(states[by_row])
        elif logits is not None and lookup.num_rows < len(active):
            logits = logits[lookup.row_of[by_row]]
        longest = int(lookup.lengths.max())
        shared = common_tokens(lookup.cache, len(active), longest)
        decoder = CachedDecoder(self.engine, lookup.cache, active[by_row], rows, logits, longest - wait, shared)
        if wait:
            count(**{self.engine.tokens_counter: lookup.num_rows})
            decoder.pending = tokens[by_row].gather(1, lengths[by_row, None] - 1)[:, 0]
        return decoder

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        whole, before, ends = with_steps(context, active, tokens)
        yield from self._outputs(self.engine, self._vocab_size, context, active, whole, ends, before - 1, tokens.shape[1])

    def hidden_states(self, context: Context, active: Tensor, positions: Tensor) -> Tensor:
        tokens, ends = context.tokens.reshape(-1, context.tokens.shape[-1])[active], positions.amax(-1) + 1
        first = torch.where(positions < 0, ends[:, None], positions).amin(-1)
        tokens = torch.where(torch.arange(tokens.shape[1], device=tokens.device) < ends[:, None], tokens, PAD)
        width, size = int((ends - first).max()), self.hidden.size
        found = torch.zeros(*positions.shape, size, device=tokens.device)
        for some, states in self._outputs(self._hidden_engine, size, context, active, tokens, ends, first, width):
            at = (positions[some] - first[some, None]).clamp(min=0)
            found[some] = states.gather(1, at[..., None].expand(-1, -1, size)).float()
        self._keep_states(context, active, found.take_along_dim(positions.argmax(-1)[:, None, None], 1)[:, 0], ends)
        return found

    def _keep_states(self, context: Context, active: Tensor, states: Tensor, lengths: Tensor) -> None:
        """Leave the states after the first ``lengths [A]`` tokens in a cache entry. They stay true whatever follows these tokens."""
        entry, total = self._states_entry(context), context.lengths.numel()
        if entry is None:
            kept, after = states.new_zeros(total, states.shape[-1]), lengths.new_zeros(total)
        else:
            kept, after = (entry.tensors[name].reshape(total, *size) for name, size in (("states", states.shape[1:]), ("lengths", ())))
        kept, after = kept.index_copy(0, active, states), after.index_copy(0, active, lengths)
        shape = context.batch_shape
        context.cache_entries[self._states_key] = CacheEntry(None, {"states": kept.view(*shape, -1), "lengths": after.view(shape)})

    def _states_at_end(self, context: Context, active: Tensor, lengths: Tensor) -> Tensor | None:
        """States ``[A, H]`` after the last tokens of sequences, if they are known and logits follow from them."""
        entry = self._states_entry(context)
        if entry is None or not self.hidden.suffices or bool((entry.tensors["lengths"].flatten()[active] != lengths).any()):
            return None
        return entry.tensors["states"].reshape(context.lengths.numel(), -1)[active]

    def _states_entry(self, context: Context) -> CacheEntry | None:
        entry = find_entry(context.cache_entries, self._states_key, lambda owner: None)
        return entry if entry is not None and entry.tensors["lengths"].shape == context.batch_shape else None

    def _outputs(
        self, engine: CacheEngine, size: int, context: Context, active: Tensor, tokens: Tensor, ends: Tensor, first: Tensor, width: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs of given sequences, in chunks.

        :param int size: of an output; bounds those made at a time.
        :param Tensor tokens: ``[A, L]`` padded with ``PAD``, and their lengths ``ends [A]``.
        :param Tensor first: ``[A]``, the positions from which on outputs are wanted.
        :returns: pairs of rows ``[a]`` (indices into ``active``) and outputs ``[a, width, size]``, void behind the ends.
        """
        lookup, rows = self._look_up(engine, context, active, tokens, ends, first, 0)
        rows[active] = lookup.row_of
        column = torch.arange(width, device=tokens.device)
        at_once = max(1, _LOGITS_ELEMENTS // (width * size))
        place = torch.zeros(lookup.num_rows, dtype=torch.long, device=tokens.device)
        wanted = lookup.lengths[:, None] - width + column  # a row may stand for sequences that want outputs from different places on
        for members, outputs in lookup.complete_in_parts(wanted, at_once):
            place[members] = torch.arange(len(members), device=tokens.device)
            for some in torch.isin(lookup.row_of, members).nonzero()[:, 0].split(at_once):
                at = (first + width - ends)[some, None] + column
                mine = outputs[place[lookup.row_of[some]]]
                yield some, mine.gather(1, at.clamp(max=width - 1)[..., None].expand(-1, -1, outputs.shape[2]))

    def _look_up(
        self, engine: CacheEngine, context: Context, active: Tensor, tokens: Tensor, lengths: Tensor, known: Tensor, num_rows: int
    ) -> tuple[CacheLookup, Tensor]:
        """Find sequences, and leave a cache entry with a table of their rows for the caller to fill."""
        tokens = tokens[:, : int(lengths.max())]
        prompt_lengths = context.prompt_lengths.flatten()[active]
        entry = find_entry(context.cache_entries, self._key, self.engine.pool.adopt)
        lookup = look_up(engine, entry, active, tokens, lengths, known, prompt_lengths, num_rows)
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
    :param logits: ``[A, V]``, or ``None`` where ``pending`` is to be run first.
    :param int longest: bound on the tokens of any sequence; also an attribute.
    :param int shared: leading tokens that all rows have in common and that are worth reading once.
    :ivar pending: tokens ``[A]`` for the first :meth:`advance`, if the logits have to wait for it.
    """

    logits: Tensor

    def __init__(
        self, engine: CacheEngine, cache: KVCache, sequences: Tensor, rows: Tensor, logits: Tensor | None, longest: int, shared: int = 0
    ) -> None:
        self._engine, self.cache, self._rows = engine, cache, rows
        self._order = self.sequences = sequences
        self.longest, self._shared = longest, shared
        self.pending: Tensor | None = None
        if logits is not None:
            self.logits = logits

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
        cache.tokens.scatter_(1, positions, tokens[:, None].to(cache.tokens.dtype))
        shared = self._shared if pays(positions.device, rows, self._shared) else 0
        return Part(cache, tokens[:, None], positions, self._engine.place(cache, positions, longest), shared)

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
