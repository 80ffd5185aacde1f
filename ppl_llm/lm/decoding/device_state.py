"""One more token of many lanes, with everything that it reads and writes in tensors that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ...context import PAD
from ...kv_cache.cache import KVSlab
from ...kv_cache.engine import PrefixEngine
from ..base import StepOptions
from ..stopping import StopAutomaton
from .sampling import inverse_cdf, warp


class TokenStep:
    """Sampling, the watch for a step's end, lengths and flags of lanes, all on the device.

    A lane has a *row* of the slab, which changes when other lanes are dropped, and a *slot*, which it keeps and where its results are
    collected. Rows that hold no lane have the slot after the last one and are never alive: a batch can be filled up with them.

    :param int rows: lanes at most.
    :param int width: tokens of a step at most.
    :ivar Tensor slot: ``[rows]``.
    :ivar Tensor alive: ``[rows]`` whether the lane goes on.
    :ivar Tensor tokens: ``[rows + 1, width + 1]`` by slot, padded with ``PAD``; nothing is kept in the last column.
    :ivar Tensor log_probs: ``[rows + 1]`` by slot.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.rows, self.width = rows, width
        self.slot = torch.full((rows,), rows, device=device)
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.full((rows + 1, width + 1), PAD, device=device)
        self.log_probs = torch.zeros(rows + 1, device=device)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._state = torch.zeros(rows, dtype=torch.int32, device=device)
        self._column = torch.zeros(rows, dtype=torch.long, device=device)  # that the lane's next token belongs to
        self._uniforms = torch.zeros(rows + 1, width + 1, dtype=torch.float64, device=device)
        self._room = torch.zeros(rows + 1, dtype=torch.long, device=device)

    def enlarged(self, rows: int, width: int) -> TokenStep:
        """The same lanes with room for more of them and for longer steps."""
        new = TokenStep(max(rows, self.rows), max(width, self.width), self.slot.device)
        new.slot[: self.rows] = torch.where(self.slot == self.rows, new.rows, self.slot)
        for name in ("alive", "log_probs", "_token", "_state", "_column", "_room"):
            getattr(new, name)[: self.rows] = getattr(self, name)[: self.rows]
        for name in ("tokens", "_uniforms"):
            getattr(new, name)[: self.rows, : self.width] = getattr(self, name)[: self.rows, : self.width]
        return new

    def begin(self, uniforms: Tensor, room: Tensor) -> None:
        """Start a step of lanes that lie in the first rows, which become their slots, and forget all others; see :meth:`join`."""
        self.leave(0)
        self.join(0, torch.arange(len(room), device=room.device), uniforms, room)

    def join(self, first: int, slots: Tensor, uniforms: Tensor, room: Tensor) -> None:
        """Start a step of further lanes, beside those whose step is under way.

        :param int first: the row of the first of them.
        :param Tensor slots: ``[A]`` of which no other lane has one.
        :param Tensor uniforms: ``[A, M]`` one for each token.
        :param Tensor room: ``[A]`` tokens that each lane may take.
        """
        lanes, width = uniforms.shape
        rows = slice(first, first + lanes)
        self.slot[rows] = slots
        self.alive[rows] = True
        self.tokens[slots] = PAD
        self.log_probs[slots] = 0.0
        for zeroed in (self._token, self._state, self._column):
            zeroed[rows] = 0
        self._uniforms[slots, :width] = uniforms
        self._room[slots] = room

    def choose(self, logits: Tensor, options: StepOptions, automaton: StopAutomaton, eos_ids: Tensor, first: int = 0) -> None:
        """Sample the next token of A rows from logits ``[A, V]``, which are overwritten.

        :param int first: the first of these rows.
        """
        rows = slice(first, first + len(logits))
        slot, alive, column = self.slot[rows], self.alive[rows], self._column[rows]
        token, log_prob = inverse_cdf(warp(logits, options), self._uniforms[slot, column], overwrite=True)
        self.tokens[slot, column] = torch.where(alive, token, PAD)
        self.log_probs[slot] += torch.where(alive, log_prob, 0.0)
        state = automaton.step(self._state[rows], token)
        column.add_(1).clamp_(max=self.width)  # what becomes of a lane that has ended is of no interest
        # Not isin, which sorts, and so waits for the device, where there are many ids.
        ended = (state == automaton.accept) | (token[:, None] == eos_ids).any(-1) | (column >= self._room[slot])
        self._token[rows], self._state[rows] = token, state
        alive &= ~ended

    def advance(self, engine: PrefixEngine, slab: KVSlab, lanes: int, stop: int) -> Tensor:
        """Append each row's last token where the lane is alive: the next logits ``[lanes, V]``.

        :param int lanes: rows that take part; what those without a lane hold stays valid.
        :param int stop: columns read, more than the longest lane has tokens.
        """
        ids, at = self._token[:lanes, None], slab.lengths[:lanes]
        positions = at[:, None].clone()
        # Behind the end of what a row holds: where the length does not grow, nothing has happened.
        slab.tokens.scatter_(1, positions, ids)
        mask = slab.place(None, positions, stop)
        logits = engine.run(slab, ids, positions, mask, 1)[:, -1]
        at += self.alive[:lanes]
        return logits

    def take(self, rows: Tensor) -> None:
        """Leave the lanes of ``rows [n]`` in the first n rows, and none in the others."""
        for held in (self.slot, self.alive, self._token, self._state, self._column):
            held[: len(rows)] = held[rows]
        self.leave(len(rows))

    def leave(self, first: int) -> None:
        """Let the rows from ``first`` on hold no lane."""
        self.slot[first:] = self.rows
        self.alive[first:] = False
