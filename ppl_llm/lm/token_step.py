"""One more token of many lanes, with everything that it reads and writes in tensors that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import PAD
from .kv_slab import KVSlab
from .prefix_engine import PrefixEngine
from .protocol import StepOptions
from .sampling import inverse_cdf, warp
from .stop import StopAutomaton


class TokenStep:
    """Sampling, the watch for a step's end, lengths and flags of lanes, all on the device.

    A lane has a *row* of the slab, which changes when other lanes are dropped, and a *slot*, its first row, where its results are
    collected. Rows that hold no lane have the slot after the last one and are never alive: a batch can be filled up with them.

    :param int rows: lanes at most.
    :param int width: tokens of a step at most.
    :ivar Tensor slot: ``[rows]``.
    :ivar Tensor alive: ``[rows]`` whether the lane goes on.
    :ivar Tensor tokens: ``[rows + 1, width]`` by slot, padded with ``PAD``.
    :ivar Tensor log_probs: ``[rows + 1]`` by slot.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.rows, self.width = rows, width
        self.slot = torch.full((rows,), rows, device=device)
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.full((rows + 1, width), PAD, device=device)
        self.log_probs = torch.zeros(rows + 1, device=device)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._state = torch.zeros(rows, dtype=torch.int32, device=device)
        self._uniforms = torch.zeros(rows + 1, width, dtype=torch.float64, device=device)
        self._room = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)  # one element, not none: a 0-dim index would be read by the host

    def begin(self, uniforms: Tensor, room: Tensor) -> None:
        """Start a step of lanes that lie in the first rows.

        :param Tensor uniforms: ``[A, M]`` one for each token.
        :param Tensor room: ``[A]`` tokens that each lane may take.
        """
        lanes, width = uniforms.shape
        self.slot.fill_(self.rows)
        self.slot[:lanes] = torch.arange(lanes, device=self.slot.device)
        self.alive.fill_(False)
        self.alive[:lanes] = True
        self.tokens.fill_(PAD)
        for zeroed in (self.log_probs, self._token, self._state, self._column):
            zeroed.zero_()
        self._uniforms[:lanes, :width] = uniforms
        self._room[:lanes] = room

    def choose(self, logits: Tensor, options: StepOptions, automaton: StopAutomaton, eos_ids: Tensor) -> None:
        """Sample the next token of the first A rows from logits ``[A, V]``, which are overwritten."""
        lanes = len(logits)
        slot, alive = self.slot[:lanes], self.alive[:lanes]
        token, log_prob = inverse_cdf(warp(logits, options), self._uniforms[slot, self._column], overwrite=True)
        self.tokens[slot, self._column] = torch.where(alive, token, PAD)
        self.log_probs[slot] += torch.where(alive, log_prob, 0.0)
        state = automaton.step(self._state[:lanes], token)
        self._column += 1
        # Not isin, which sorts, and so waits for the device, where there are many ids.
        ended = (state == automaton.accept) | (token[:, None] == eos_ids).any(-1) | (self._column >= self._room[slot])
        self._token[:lanes], self._state[:lanes] = token, state
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
        number = len(rows)
        for held in (self.slot, self.alive, self._token, self._state):
            held[:number] = held[rows]
        self.slot[number:] = self.rows
        self.alive[number:] = False
