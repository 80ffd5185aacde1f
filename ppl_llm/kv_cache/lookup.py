"""Finds token sequences in the rows of a slab, or makes room for them, so that no more than what is missing has to be run."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import PAD, LaneMemo
from .cache import KVSlab
from .engine import PrefixEngine
from .seating import Seating

_SEARCH_ELEMENTS = 2**24
"""Tokens compared at a time where rows are searched for."""


def seat(
    engine: PrefixEngine,
    memo: LaneMemo | None,
    lanes: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    known: Tensor,
    stems: Tensor,
    num_rows: int = 0,
) -> Seating:
    """Find or make room for sequences; at most ``known`` leading tokens of each are reused.

    :param memo: a note that leads to a slab, and the rows of it that each flat lane may be found in, negative for none.
    :param Tensor lanes: ``[A]`` the flat lane of each sequence.
    :param Tensor tokens: ``[A, L]`` padded with ``PAD``, no wider than the longest.
    :param Tensor lengths: ``[A]``.
    :param Tensor known: ``[A]`` less than ``lengths``: outputs are wanted from there on.
    :param Tensor stems: ``[A]`` length of the part (the prompt) that many sequences may share.
    :param int num_rows: rows that the caller needs in the end.
    """
    slab = engine.pool.take(memo)
    device = engine.device
    hints = memo.lanes["rows"].flatten()[lanes] if memo is not None and memo.owner.slab is slab else None
    distinct, group = torch.unique(tokens, dim=0, return_inverse=True)
    order = torch.arange(len(tokens), device=device)
    first = order.new_full((len(distinct),), len(tokens)).scatter_reduce(0, group, order, "amin")
    engine.reserve(slab, max(len(distinct), num_rows), tokens.shape[1])
    hint = torch.full_like(first, -1) if hints is None else hints[first]
    hint = torch.where(hint < slab.num_rows, hint, -1)
    known = known[first]
    held = torch.where(hint < 0, 0, slab.common_prefix(hint.clamp(min=0), distinct))
    # On the host from here on, which would otherwise wait for the device at each of the decisions that follow.
    hint, held, known, stem = torch.stack([hint, held, known, torch.minimum(stems[first], known)]).cpu()
    _search(slab, hint, held, distinct, stem)
    held = torch.minimum(held, known)
    _share_stems(engine, slab, hint, held, distinct, stem)
    row = _settle(slab, hint, held)
    by_row = row.argsort()
    held, row, by_row = held[by_row].to(device), row.to(device), by_row.to(device)
    return Seating(slab, distinct[by_row], lengths[first][by_row], held, row_of=row[group], repeated=first[group] != order)


def _search(slab: KVSlab, hint: Tensor, held: Tensor, tokens: Tensor, stems: Tensor) -> None:
    """Look through all rows for sequences that were not found with their stem where the hint says.

    :param Tensor hint: ``[U]`` the row that each sequence is found in, negative for none, and how much of it there, ``held``; improved.
    """
    lost = (held < stems).nonzero()[:, 0]
    if len(lost) == 0:
        return
    rows = torch.arange(slab.num_rows, device=tokens.device)
    for part in lost.split(max(1, _SEARCH_ELEMENTS // max(1, slab.tokens.numel()))):
        wanted = tokens[part.to(tokens.device)]
        longest, row = torch.stack(slab.common_prefix(rows[None].expand(len(part), -1), wanted[:, None]).max(-1)).cpu()
        hint[part] = torch.where(longest > held[part], row, hint[part])
        held[part] = torch.maximum(longest, held[part])


def _share_stems(engine: PrefixEngine, slab: KVSlab, hint: Tensor, held: Tensor, tokens: Tensor, stems: Tensor) -> None:
    """Run the prompts of sequences that start from nothing, each distinct one once; these are then found, too."""
    cold = (held < stems).nonzero()[:, 0]
    if len(cold) < 2:
        return
    device = tokens.device
    column = torch.arange(tokens.shape[1], device=device)
    begun = torch.where(column < stems[cold, None].to(device), tokens[cold.to(device)], PAD)
    prompts, which = torch.unique(begun, dim=0, return_inverse=True)
    if len(prompts) == len(cold):
        return
    in_use = torch.zeros(slab.num_rows, dtype=torch.bool)
    in_use[hint[(held >= stems) & (hint >= 0)]] = True
    free = (~in_use).nonzero()[:, 0]
    if len(free) < len(prompts):
        added = torch.arange(slab.num_rows, slab.num_rows + len(prompts) - len(free))
        engine.reserve(slab, slab.num_rows + len(added), tokens.shape[1])
        free = torch.cat([free, added])
    # A prompt that a row holds in part already stays where it is.
    rows = free[: len(prompts)].to(device)
    lengths = (prompts != PAD).sum(-1)
    present = torch.minimum(slab.common_prefix(rows, prompts), lengths - 1)
    engine.append(slab, rows, prompts, lengths, present, lengths[:, None] - 1)
    hint[cold], held[cold] = rows[which].cpu(), stems[cold]


def _settle(slab: KVSlab, hint: Tensor, held: Tensor) -> Tensor:
    """A row below U for each of U sequences, with its first ``held`` tokens in place: ``[U]``.

    Sequences stay where they are if they can; of several that start from one row, the first keeps it.
    """
    total, device = len(hint), slab.lengths.device
    order = torch.arange(total)
    owner = order.new_full((slab.num_rows,), total)
    owner = owner.scatter_reduce(0, hint.clamp(min=0), torch.where(hint < 0, total, order), "amin")
    stays = (hint >= 0) & (hint < total) & (owner[hint.clamp(min=0)] == order)
    vacant = torch.ones(total, dtype=torch.bool)
    vacant[hint[stays]] = False
    row = torch.where(stays, hint, -1)
    row[~stays] = vacant.nonzero()[:, 0]
    moved = ~stays & (held > 0)
    slab.copy(hint[moved].to(device), row[moved].to(device), held[moved].to(device))
    slab.lengths[row.to(device)] = held.to(device)
    return row
