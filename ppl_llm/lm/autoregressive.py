"""The token loop that every local language model shares: sample, watch for the end of the step, drop finished lanes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context
from ..inference.concurrent.program import current_program
from ..inference.cost import count
from ..kv_cache.memory_limit import BatchLimit
from .base import StepOptions, StepSample
from .decoding.decoder import Decoder, Draw, Move, Moves
from .decoding.joint_decoding import JointDecoding, StepRequest, advance_each
from .decoding.sampling import warp
from .stopping import StopAutomaton

_KEEP_OCCUPANCY = 0.9
"""Rows are compacted once fewer than this share of them is alive (measured best of 0.999, 0.9, 0.75, 0.5)."""


class DecodingLM(ABC):
    """Base of language models that give next-token logits (a :class:`~ppl_llm.lm.base.LanguageModel`).

    Subclasses give :meth:`_decoder` and :meth:`_step_logits`. What these note in ``context.memo`` reaches the context that the user
    extends.
    """

    vocab_size: int
    max_length: int
    eos_ids: Tensor
    enumerable = False
    batches_programs = False
    """Whether the steps of several programs are sampled in one batch."""

    @property
    def device(self) -> torch.device:
        return self.eos_ids.device

    @abstractmethod
    def start(self, problem: Any) -> Context: ...

    @abstractmethod
    def decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _token_bytes(self) -> list[bytes]:
        """Bytes of each token id; empty for special tokens."""

    @abstractmethod
    def _decoder(self, context: Context, active: Tensor) -> Decoder:
        """A decoder for the flat lane numbers ``active`` of ``context``, which is already expanded to all lanes."""

    @abstractmethod
    def _step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Teacher-forced logits in chunks.

        :param Tensor active: ``[A]`` flat lane numbers.
        :param Tensor tokens: ``[A, M]`` the step of each of them, padded with ``PAD``.
        :returns: pairs of rows ``[a]`` (indices into ``active``) and logits ``[a, M, V]`` of each of the step's tokens.
        """

    def _special_ids(self, texts: tuple[str, ...]) -> list[int]:
        """Ids of the special tokens, which have no bytes, that are written as one of these texts."""
        return []

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        if not hasattr(self, "_automata"):
            self._automata: dict[tuple[str, ...], StopAutomaton] = {}
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if stops not in self._automata:
            self._automata[stops] = StopAutomaton(self._token_bytes(), stops, self.device, self._special_ids(stops))
        return self._automata[stops]

    @torch.no_grad()
    def sample_step(self, context: Context, lanes: torch.Size, options: StepOptions) -> StepSample:
        original, context = context, context.expand(torch.broadcast_shapes(lanes, context.batch_shape))
        total, width, device = context.lengths.numel(), options.max_tokens, self.device
        # One uniform per lane and token, drawn before any lane drops out: a lane's tokens do not depend on the others' lengths.
        uniforms = torch.rand(total, width, dtype=torch.float64, device=device)
        tokens = torch.full((total, width), PAD, device=device)
        log_probs = torch.zeros(total, device=device)
        active = (~context.done).flatten().nonzero()[:, 0]
        if len(active):

            def run(batch: slice) -> None:
                some = active[batch]
                tokens[some], log_probs[some] = PAD, 0.0
                self._run(context, some, options, uniforms, tokens, log_probs)

            self._at_once.in_batches(len(active), run, self._free_memory)
            original.memo.update(context.memo)
        count(tokens_sampled=int((tokens != PAD).sum()))
        return StepSample(tokens.view(*lanes, width), log_probs.view(lanes))

    @cached_property
    def _joint_decoding(self) -> JointDecoding:
        return JointDecoding(self._advance)

    @cached_property
    def _at_once(self) -> BatchLimit:
        """Lanes that are known to fit into memory."""
        return BatchLimit("lanes")

    def _free_memory(self) -> None:  # noqa: B027 - most models hold nothing
        """Release what is not needed for a correct result."""

    def _run(self, context: Context, active: Tensor, options: StepOptions, uniforms: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Fill in the tokens and log-probabilities of the flat lanes ``active``; together with other programs, where there are any."""
        moves = self._moves(context, active, options, uniforms, tokens, log_probs)
        program = current_program() if self.batches_programs else None
        if program is not None:
            with closing(moves):
                return program.wait(StepRequest(self._joint_decoding, moves, len(active)))
        move = next(moves)
        with suppress(StopIteration):
            while True:
                [draw] = self._advance([move])
                move = moves.send(draw)

    def _advance(self, moves: Sequence[Move]) -> list[Draw]:
        """Make moves, which may be those of several programs."""
        return advance_each(moves)

    def _moves(self, context: Context, active: Tensor, options: StepOptions, uniforms: Tensor, tokens: Tensor, log_probs: Tensor) -> Moves:
        """:meth:`_run` without its forward passes and draws."""
        decoder = self._decoder(context, active)
        automaton = self.stop_automaton(options.stop)
        # What the rows of the decoder need and bring lies in their order from one drop of lanes to the next: no indexing for each token.
        lanes = decoder.lanes
        own_uniforms, room = uniforms[lanes], (self.max_length - context.lengths).flatten().clamp(max=options.max_tokens)[lanes]
        state = torch.zeros(len(lanes), dtype=torch.int32, device=self.device)
        alive = torch.ones(len(lanes), dtype=torch.bool, device=self.device)
        total = log_probs.new_zeros(len(lanes))
        taken: list[Tensor] = []
        begin = 0  # the token place that the first of those taken belongs to
        check_every = 1 if self.device.type == "cpu" else 8  # reading the flags waits for the device
        last: Tensor | None = None
        for k in range(options.max_tokens):
            token, log_prob = yield Move(decoder, last, alive, own_uniforms[:, k], options)
            taken.append(torch.where(alive, token, PAD))
            total += torch.where(alive, log_prob, 0.0)
            state = automaton.step(state, token)
            alive = alive & (state != automaton.accept) & torch.isin(token, self.eos_ids, invert=True) & (room > k + 1)
            if k % check_every == 0:
                num_alive = int(alive.sum())
                if num_alive == 0:
                    break
                if num_alive <= _KEEP_OCCUPANCY * len(alive) and k + 1 < options.max_tokens:
                    tokens[lanes, begin : k + 1], log_probs[lanes] = torch.stack(taken, 1), total
                    row_of = torch.zeros(uniforms.shape[0], dtype=torch.long, device=self.device)
                    row_of[lanes] = torch.arange(len(lanes), device=self.device)
                    decoder.keep(alive)
                    lanes = decoder.lanes
                    rows = row_of[lanes]
                    own_uniforms, room, state, alive, total, token = (
                        each[rows] for each in (own_uniforms, room, state, alive, total, token)
                    )
                    taken, begin = [], k + 1
            last = token
        tokens[lanes, begin : k + 1], log_probs[lanes] = torch.stack(taken, 1), total

    def step_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        def chosen(log_probs: Tensor, given: Tensor) -> Tensor:
            return log_probs.gather(-1, given.clamp(min=0)[..., None])[..., 0]

        return self._over_step(context, tokens, options, chosen, -torch.inf)

    def step_entropy(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """Sum of the entropies ``[*lanes]`` of the laws that each token of a step comes from; nan for what is no step."""

        def entropy(log_probs: Tensor, given: Tensor) -> Tensor:
            return torch.special.entr(log_probs.exp()).sum(-1)

        return self._over_step(context, tokens, options, entropy, torch.nan)

    @torch.no_grad()
    def _over_step(
        self, context: Context, tokens: Tensor, options: StepOptions, figure: Callable[[Tensor, Tensor], Tensor], impossible: float
    ) -> Tensor:
        """Sums ``[*lanes]`` of a figure of each token of a step: 0 on finished lanes, ``impossible`` where sampling gives no such step.

        :param figure: ``[a, M]`` from normalised log-probabilities ``[a, M, V]`` of the warped law and the tokens ``[a, M]``.
        """
        lanes = torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape)
        original, context = context, context.expand(lanes)
        steps = tokens.expand(*lanes, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        done = context.done.flatten()
        empty = (steps == PAD).all(-1)
        allowed = torch.where(done, empty, self._is_step(steps, context, options))
        totals = torch.where(allowed, 0.0, impossible).to(self.device)
        active = (allowed & ~done).nonzero()[:, 0]
        if len(active):
            chosen = steps[active]
            chosen = chosen[:, : int((chosen != PAD).sum(-1).max())]

            def run(batch: slice) -> None:
                for rows, logits in self._step_logits(context, active[batch], chosen[batch]):
                    given = chosen[batch][rows]
                    each = figure(warp(logits, options).log_softmax(-1), given)
                    totals[active[batch][rows]] = torch.where(given == PAD, 0.0, each).sum(-1)

            self._at_once.in_batches(len(active), run, self._free_memory)
            original.memo.update(context.memo)
        return totals.view(lanes)

    def _is_step(self, steps: Tensor, context: Context, options: StepOptions) -> Tensor:
        """Whether sequences ``[A, M]`` end exactly where sampling would have ended them: ``[A]``."""
        if steps.shape[-1] != options.max_tokens:
            raise ValueError(f"a step has {options.max_tokens} token places (max_tokens), got a value with {steps.shape[-1]}")
        automaton = self.stop_automaton(options.stop)
        room = (self.max_length - context.lengths).flatten().clamp(max=options.max_tokens)
        state = torch.zeros(steps.shape[0], dtype=torch.int32, device=steps.device)
        open_ = torch.ones(steps.shape[0], dtype=torch.bool, device=steps.device)
        valid = open_.clone()
        for k, token in enumerate(steps.unbind(-1)):
            is_token = (token >= 0) & (token < self.vocab_size)
            valid &= torch.where(open_, is_token, token == PAD)
            safe = torch.where(is_token, token, 0)
            state = automaton.step(state, safe)
            open_ = open_ & (state != automaton.accept) & ~torch.isin(safe, self.eos_ids) & (k + 1 < room)
        return valid & ~open_
