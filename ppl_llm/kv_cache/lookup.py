"""Finds token sequences in the rows of a KV cache, or makes room for them, so that no more than what is missing has to be run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import PAD
from ..context_cache import CacheEntry
from .cache import KVCache
from .engine import CacheEngine

_SEARCH_ELEMENTS = 2**24
"""Tokens compared at a time where rows are searched for."""


@dataclass
class CacheLookup:
    """Where sequences lie in a KV cache, and how much of each: the distinct ones have its first rows.

    :ivar Tensor tokens: ``[U, L]``, row ``u`` of the cache is for sequence ``u``; padded with ``PAD``.
    :ivar Tensor lengths: ``[U]``.
    :ivar Tensor reused: ``[U]`` leading tokens that the row holds.
    :ivar Tensor row_of: ``[A]`` the row of each requested sequence.
    :ivar Tensor repeated: ``[A]`` whether an earlier one is identical.
    """

    engine: CacheEngine
    cache: KVCache
    tokens: Tensor
    lengths: Tensor
    reused: Tensor
    row_of: Tensor
    repeated: Tensor

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    def complete(self, wanted: Tensor) -> Tensor:
        """Run the missing tokens.

        :param Tensor wanted: ``[U, K]`` positions of the tokens whose outputs are wanted; of those before ``reused`` the outputs mean
            nothing.
        :returns: outputs ``[U, K, V]``.
        """
        rows = torch.arange(self.num_rows, device=self.engine.device)
        outputs = self.engine.append(self.cache, rows, self.tokens, self.lengths, self.reused, wanted)
        self.reused = self.lengths
        self.engine.pool.trim()
        return outputs

    def complete_in_parts(self, wanted: Tensor, max_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """:meth:`complete`, at most ``max_rows`` sequences at a time, which bounds the memory of outputs.

        :returns: pairs of rows ``[u]`` and outputs ``[u, K, V]``.
        """
        rows = torch.arange(self.num_rows, device=self.engine.device)
        for begin in range(0, len(rows), max_rows):
            at = slice(begin, begin + max_rows)
            yield rows[at], self.engine.append(self.cache, rows[at], self.tokens[at], self.lengths[at], self.reused[at], wanted[at])
        self.engine.pool.trim()

    def spread(self) -> Tensor:
        """Give each requested sequence its own row, by copies of those that are repeated: ``[A]`` these rows."""
        row_of = torch.where(self.repeated, self.num_rows - 1 + self.repeated.cumsum(0), self.row_of)
        copies = self.repeated.nonzero()[:, 0]
        source = self.row_of[copies]
        self.cache.copy(source, row_of[copies], self.reused[source])
        return row_of


def look_up(
    engine: CacheEngine,
    entry: CacheEntry | None,
    indices: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    known: Tensor,
    prompt_lengths: Tensor,
    num_rows: int = 0,
) -> CacheLookup:
    """Find or make room for sequences; at most ``known`` leading tokens of each are reused.

    :param entry: leads to a KV cache, and to the row of it that each flat index may be found in, negative for none.
    :param Tensor indices: ``[A]`` the flat index of each sequence in the batch of the context.
    :param Tensor tokens: ``[A, L]`` padded with ``PAD``, no wider than the longest.
    :param Tensor lengths: ``[A]``.
    :param Tensor known: ``[A]`` at most ``lengths``: outputs are wanted from there on, none where it is ``lengths``.
    :param Tensor prompt_lengths: ``[A]`` length of the part (the prompt) that many sequences may share.
    :param int num_rows: rows that the caller needs in the end.
    """
    cache = engine.pool.take(entry)
    device = engine.device
    hints = entry.tensors["rows"].flatten()[indices] if entry is not None and entry.owner.cache is cache else None
    distinct, group = torch.unique(tokens, dim=0, return_inverse=True)
    order = torch.arange(len(tokens), device=device)
    first = order.new_full((len(distinct),), len(tokens)).scatter_reduce(0, group, order, "amin")
    engine.reserve(cache, max(len(distinct), num_rows), tokens.shape[1])
    hint = torch.full_like(first, -1) if hints is None else hints[first]
    hint = torch.where(hint < cache.num_rows, hint, -1)
    # Of equal sequences the one that wants most decides.
    known = known.new_full((len(distinct),), tokens.shape[1] + 1).scatter_reduce(0, group, known, "amin")
    held = torch.where(hint < 0, 0, cache.common_prefix(hint.clamp(min=0), distinct))
    # On the host from here on, which would otherwise wait for the device at each of the decisions that follow.
    hint, held, known, prompt_length = torch.stack([hint, held, known, torch.minimum(prompt_lengths[first], known)]).cpu()
    _search(cache, hint, held, distinct, known)
    held = torch.minimum(held, known)
    _borrow(engine, cache, hint, held, distinct, known)
    _share_prompts(engine, cache, hint, held, distinct, prompt_length)
    row = _settle(cache, hint, held)
    by_row = row.argsort()
    held, row, by_row = held[by_row].to(device), row.to(device), by_row.to(device)
    return CacheLookup(engine, cache, distinct[by_row], lengths[first][by_row], held, row_of=row[group], repeated=first[group] != order)


def _search(cache: KVCache, hint: Tensor, held: Tensor, tokens: Tensor, known: Tensor) -> None:
    """Look through all rows for sequences that the hinted row does not hold as far as they may be reused.

    :param Tensor hint: ``[U]`` the row that each sequence is found in, negative for none, and how much of it there, ``held``; improved.
    """
    lost = (held < known).nonzero()[:, 0]
    if len(lost) == 0:
        return
    longest, row = _longest_in(cache, tokens[lost.to(tokens.device)])
    hint[lost] = torch.where(longest > held[lost], row, hint[lost])
    held[lost] = torch.maximum(longest, held[lost])


def _longest_in(cache: KVCache, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How many leading tokens of ``wanted [W, L]`` any row holds, and which row does, ``[W]`` each and on the host."""
    rows = torch.arange(cache.num_rows, device=wanted.device)
    parts = wanted.split(max(1, _SEARCH_ELEMENTS // max(1, cache.tokens.numel())))
    found = [torch.stack(cache.common_prefix(rows[None].expand(len(part), -1), part[:, None]).max(-1)) for part in parts]
    longest, row = torch.cat(found, 1).cpu()
    return longest, row


def _borrow(engine: CacheEngine, cache: KVCache, hint: Tensor, held: Tensor, tokens: Tensor, known: Tensor) -> None:
    """Copy what other KV caches, those of contexts that are still alive, hold more of the beginnings of sequences; it is then found, too.

    Prompts are shared by problems that begin alike, and longer beginnings by trees, whose sequences continue where others branched.
    """
    others = engine.pool.at_rest(cache)
    cold = (held < known).nonzero()[:, 0]
    if not others or len(cold) == 0:
        return
    device = tokens.device
    begun, which = _beginnings(tokens, known, cold)
    which = which.cpu()
    best = torch.zeros(len(begun), dtype=torch.long).scatter_reduce(0, which, held[cold], "amax")
    donor, source = torch.full_like(best, -1), torch.zeros_like(best)
    for number, other in enumerate(others):
        longest, row = _longest_in(other, begun)
        better = longest > best
        best, donor, source = torch.where(better, longest, best), torch.where(better, number, donor), torch.where(better, row, source)
    found = (donor >= 0).nonzero()[:, 0]
    if len(found) == 0:
        return
    # Sequences with the same beginning in one of the others, as a prompt that all have, start from one copy of it.
    place, of = torch.unique(torch.stack([donor, source, best])[:, found], dim=1, return_inverse=True)
    lucky = donor[which] >= 0
    kept = torch.ones_like(held, dtype=torch.bool)
    kept[cold[lucky]] = False
    targets = _free_rows(engine, cache, hint[kept & (held > 0)], place.shape[1], tokens.shape[1])
    for number in place[0].unique().tolist():
        mine = (place[0] == number).nonzero()[:, 0]
        stop = place[2, mine]
        cache.take(others[number], place[1, mine].to(device), targets[mine].to(device), 0, int(stop.max()))
        cache.cut(targets[mine].to(device), stop.to(device))
    group = torch.full_like(best, -1)
    group[found] = of
    hint[cold[lucky]], held[cold[lucky]] = targets[group[which[lucky]]], best[which[lucky]]


def _beginnings(tokens: Tensor, lengths: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct beginnings of some sequences, padded with ``PAD``, and which of them each one has."""
    column = torch.arange(tokens.shape[1], device=tokens.device)
    begun = torch.where(column < lengths[some, None].to(tokens.device), tokens[some.to(tokens.device)], PAD)
    return torch.unique(begun, dim=0, return_inverse=True)


def _free_rows(engine: CacheEngine, cache: KVCache, used: Tensor, number: int, columns: int) -> Tensor:
    """Rows ``[number]`` besides those that are ``used``; there are more where these do not suffice."""
    in_use = torch.zeros(cache.num_rows, dtype=torch.bool)
    in_use[used] = True
    free = (~in_use).nonzero()[:, 0]
    if len(free) < number:
        added = torch.arange(cache.num_rows, cache.num_rows + number - len(free))
        engine.reserve(cache, cache.num_rows + len(added), columns)
        free = torch.cat([free, added])
    return free[:number]


def _share_prompts(engine: CacheEngine, cache: KVCache, hint: Tensor, held: Tensor, tokens: Tensor, prompt_lengths: Tensor) -> None:
    """Run the prompts of sequences that start from nothing, each distinct one once; these are then found, too."""
    cold = (held < prompt_lengths).nonzero()[:, 0]
    if len(cold) < 2:
        return
    device = tokens.device
    prompts, which = _beginnings(tokens, prompt_lengths, cold)
    if len(prompts) == len(cold):
        return
    # A prompt that a row holds in part already stays where it is.
    rows = _free_rows(engine, cache, hint[(held >= prompt_lengths) & (hint >= 0)], len(prompts), tokens.shape[1]).to(device)
    lengths = (prompts != PAD).sum(-1)
    present = torch.minimum(cache.common_prefix(rows, prompts), lengths - 1)
    engine.append(cache, rows, prompts, lengths, present, lengths[:, None] - 1)
    hint[cold], held[cold] = rows[which].cpu(), prompt_lengths[cold]


def _settle(cache: KVCache, hint: Tensor, held: Tensor) -> Tensor:
    """A row below U for each of U sequences, with its first ``held`` tokens in place: ``[U]``.

    Sequences stay where they are if they can; of several that start from one row, the first keeps it.
    """
    total, device = len(hint), cache.lengths.device
    order = torch.arange(total)
    owner = order.new_full((cache.num_rows,), total)
    owner = owner.scatter_reduce(0, hint.clamp(min=0), torch.where(hint < 0, total, order), "amin")
    stays = (hint >= 0) & (hint < total) & (owner[hint.clamp(min=0)] == order)
    vacant = torch.ones(total, dtype=torch.bool)
    vacant[hint[stays]] = False
    row = torch.where(stays, hint, -1)
    row[~stays] = vacant.nonzero()[:, 0]
    moved = ~stays & (held > 0)
    cache.copy(hint[moved].to(device), row[moved].to(device), held[moved].to(device))
    cache.cut(row.to(device), held.to(device))
    return row
