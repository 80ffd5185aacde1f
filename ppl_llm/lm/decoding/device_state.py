"""The state of a step's sequences on the device, in tensors that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ...context import PAD
from ...kv_cache.cache import KVCache
from ...kv_cache.engine import CacheEngine
from ..base import StepOptions
from ..stopping import StopAutomaton
from ..token_figures import TokenFigure
from .sampling import draw


class DeviceState:
    """Sampling, the watch for a step's end, lengths and flags of sequences, all on the device.

    A sequence has a *row* of the KV cache, which changes when other sequences are dropped, and an *output row*, which it keeps and where
    its results are collected. Rows that hold no sequence have the output row after the last one and are never alive: a batch can be filled
    up with them.

    :param int rows: sequences at most.
    :param int width: tokens of a step at most.
    :param int num_figures: figures of the tokens at most.
    :ivar Tensor output: ``[rows]`` the output row of each row.
    :ivar Tensor alive: ``[rows]`` whether the sequence continues.
    :ivar Tensor tokens: ``[rows + 1, width + 1]`` by output row, padded with ``PAD``; nothing is kept in the last column.
    :ivar Tensor log_probs: ``[rows + 1]`` by output row.
    :ivar Tensor values: ``[rows + 1, width + 1, F]`` of figures of the tokens, by output row; the last column as that of the tokens.
    """

    def __init__(self, rows: int, width: int, device: torch.device, num_figures: int = 0) -> None:
        self.rows, self.width, self.num_figures = rows, width, num_figures
        self.output = torch.full((rows,), rows, device=device)
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.full((rows + 1, width + 1), PAD, device=device)
        self.log_probs = torch.zeros(rows + 1, dtype=torch.float64, device=device)
        self.values = torch.zeros(rows + 1, width + 1, num_figures, dtype=torch.float64, device=device)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._state = torch.zeros(rows, dtype=torch.int32, device=device)
        self._column = torch.zeros(rows, dtype=torch.long, device=device)  # that the sequence's next token belongs to
        self._uniforms = torch.zeros(rows + 1, width + 1, dtype=torch.float64, device=device)
        self._room = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self._temperatures = torch.ones(rows + 1, dtype=torch.float64, device=device)

    def enlarged(self, rows: int, width: int, num_figures: int) -> DeviceState:
        """The same sequences with room for more of them, for longer steps and for more figures."""
        new = DeviceState(max(rows, self.rows), max(width, self.width), self.output.device, max(num_figures, self.num_figures))
        new.output[: self.rows] = torch.where(self.output == self.rows, new.rows, self.output)
        for name in ("alive", "log_probs", "_token", "_state", "_column", "_room", "_temperatures"):
            getattr(new, name)[: self.rows] = getattr(self, name)[: self.rows]
        for name in ("tokens", "_uniforms"):
            getattr(new, name)[: self.rows, : self.width] = getattr(self, name)[: self.rows, : self.width]
        new.values[: self.rows, : self.width, : self.num_figures] = self.values[: self.rows, : self.width]
        return new

    def begin(self, watch: Tensor, uniforms: Tensor, room: Tensor, temperatures: Tensor | None = None) -> None:
        """Start a step of sequences that lie in the first rows, also of the output, and forget all others; see :meth:`join`."""
        self.leave(0)
        self.join(0, torch.arange(len(room), device=room.device), watch, uniforms, room, temperatures)

    def join(self, first: int, outputs: Tensor, watch: Tensor, uniforms: Tensor, room: Tensor, temperatures: Tensor | None = None) -> None:
        """Start a step of further sequences, beside those whose step is in progress.

        :param int first: the row of the first of them.
        :param Tensor outputs: ``[A]`` output rows, of which no other sequence has one.
        :param Tensor watch: ``[A]`` state of the stop automaton in which each step begins.
        :param Tensor uniforms: ``[A, M]`` one for each token.
        :param Tensor room: ``[A]`` tokens that each sequence may take.
        :param Tensor temperatures: ``[A]``, where each sequence has its own, see :meth:`choose`.
        """
        number, width = uniforms.shape
        rows = slice(first, first + number)
        self.output[rows] = outputs
        self.alive[rows] = True
        self.tokens[outputs] = PAD
        self.log_probs[outputs] = 0.0
        self.values[outputs] = 0.0
        self._state[rows] = watch
        for zeroed in (self._token, self._column):
            zeroed[rows] = 0
        self._uniforms[outputs, :width] = uniforms
        self._room[outputs] = room
        if temperatures is not None:
            self._temperatures[outputs] = temperatures

    def choose(
        self,
        logits: Tensor,
        options: StepOptions,
        automaton: StopAutomaton,
        eos_ids: Tensor,
        first: int = 0,
        figures: tuple[TokenFigure, ...] = (),
        by_sequence: bool = False,
    ) -> None:
        """Sample the next token of A rows from logits ``[A, V]``, which are overwritten.

        :param int first: the first of these rows.
        :param tuple figures: that are kept.
        :param bool by_sequence: whether each sequence has a temperature of its own.
        """
        rows = slice(first, first + len(logits))
        output, alive, column = self.output[rows], self.alive[rows], self._column[rows]
        temperatures = self._temperatures[output] if by_sequence else None
        token, log_prob, each = draw(logits, self._uniforms[output, column], options, figures, temperatures)
        self.tokens[output, column] = torch.where(alive, token, PAD)
        self.log_probs[output] += torch.where(alive, log_prob, 0.0)
        if figures:
            self.values[output, column, : len(figures)] = torch.where(alive[:, None], each, 0.0)
        state = automaton.step(self._state[rows], token)
        column.add_(1).clamp_(max=self.width)  # what becomes of a sequence that has ended is of no interest
        # Not isin, which sorts, and so waits for the device, where there are many ids.
        ended = (state == automaton.accept) | (token[:, None] == eos_ids).any(-1) | (column >= self._room[output])
        self._token[rows], self._state[rows] = token, state
        alive &= ~ended

    def advance(self, engine: CacheEngine, cache: KVCache, number: int, stop: int) -> Tensor:
        """Append each row's last token where the sequence is alive: the next logits ``[number, V]``.

        :param int number: rows that take part; what those without a sequence hold stays valid.
        :param int stop: columns read, more than the longest sequence has tokens.
        """
        ids, at = self._token[:number, None], cache.lengths[:number]
        positions = at[:, None].clone()
        # Behind the end of what a row holds: where the length does not grow, nothing has happened.
        cache.tokens.scatter_(1, positions, ids)
        mask = cache.place(positions, stop)
        logits = engine.run(cache, ids, positions, mask, 1)[:, -1]
        at += self.alive[:number]
        return logits

    def take(self, rows: Tensor) -> None:
        """Leave the sequences of ``rows [n]`` in the first n rows, and none in the others."""
        for held in (self.output, self.alive, self._token, self._state, self._column):
            held[: len(rows)] = held[rows]
        self.leave(len(rows))

    def leave(self, first: int) -> None:
        """Let the rows from ``first`` on hold no sequence."""
        self.output[first:] = self.rows
        self.alive[first:] = False
