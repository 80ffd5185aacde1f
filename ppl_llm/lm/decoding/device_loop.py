"""The token loop for accelerators: the host looks at the lanes once in a while instead of at every token."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from ...kv_cache.cache import KVSlab
from ...kv_cache.engine import PrefixEngine
from ..base import StepOptions
from ..stopping import StopAutomaton
from .cached_decoder import SlabDecoder
from .cuda_graphs import Capture, CudaCapture, StepGraphs
from .device_state import TokenStep

_CHECK_EVERY = 8
"""Tokens between two looks at the flags; each look waits for the device."""

_KV_BUCKET = 256
"""The columns that attention reads are rounded up to a multiple of this."""


def padded(lanes: int) -> int:
    """Rows that a batch of lanes is filled up to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... A graph is captured for each such number."""
    power = 1 << max(lanes - 1, 0).bit_length()
    return power * 3 // 4 if power > 16 and lanes <= power * 3 // 4 else power


class LaneTask(NamedTuple):
    """A step to be sampled.

    :ivar SlabDecoder decoder: of the lanes.
    :ivar Tensor uniforms: ``[total, M]`` by flat lane, one for each token.
    :ivar Tensor room: ``[total]`` tokens that each lane may take.
    :ivar Tensor tokens: ``[total, M]``, filled in where the decoder has a lane, and ``log_probs [total]``.
    """

    decoder: SlabDecoder
    uniforms: Tensor
    room: Tensor
    options: StepOptions
    automaton: StopAutomaton
    tokens: Tensor
    log_probs: Tensor


class DeviceLoop:
    """Samples steps like the loop of :class:`~ppl_llm.lm.autoregressive.DecodingLM`, with the same results up to rounding.

    :param PrefixEngine engine: of the language model.
    :param Tensor eos_ids: token ids that end the text.
    :param capture: how token steps are captured; ``None`` to launch each operation from the host.
    :param int check_every: tokens between two looks at which lanes are alive.
    :param int kv_bucket: see ``_KV_BUCKET``; smaller ones are for tests.
    :ivar graphs: the captured steps, if any.
    :ivar TokenStep step: the lanes' state.
    """

    def __init__(
        self,
        engine: PrefixEngine,
        eos_ids: Tensor,
        capture: Capture | None = None,
        *,
        check_every: int = _CHECK_EVERY,
        kv_bucket: int = _KV_BUCKET,
    ) -> None:
        self._engine, self._eos_ids = engine, eos_ids
        self.check_every, self._kv_bucket = check_every, kv_bucket
        self._capture = capture
        self.graphs = None if capture is None else StepGraphs(capture)
        self.step = TokenStep(0, 0, engine.device)

    @classmethod
    def captured(cls, engine: PrefixEngine, eos_ids: Tensor) -> DeviceLoop:
        """With CUDA graphs, for a model that lies on one CUDA device."""
        return cls(engine, eos_ids, CudaCapture(engine.device))

    def another(self) -> DeviceLoop:
        """One like this with lanes of its own."""
        return DeviceLoop(self._engine, self._eos_ids, self._capture, check_every=self.check_every, kv_bucket=self._kv_bucket)

    def run(self, task: LaneTask) -> None:
        """Sample a step."""
        decoder, uniforms, room, options, automaton, tokens, log_probs = task
        first = decoder.lanes
        number = len(first)
        self.make_room(number, options.max_tokens)
        step = self.step
        step.begin(uniforms[first], room[first])
        self.choose(decoder.logits, options, automaton)
        decoder.fill_up(padded(number))
        for k in range(1, options.max_tokens):
            if k % self.check_every == 0:
                alive = step.alive[:number].cpu()
                if not alive.any():
                    break
                if padded(int(alive.sum())) < padded(number):
                    number = self._drop(decoder, step, alive, uniforms.shape[0])
            self.advance(*decoder.grow(padded(number)), padded(number), options, automaton)
        tokens[first] = step.tokens[: len(first), : options.max_tokens]
        log_probs[first] = step.log_probs[: len(first)]

    def make_room(self, lanes: int, width: int) -> None:
        """Let there be so many lanes, with steps of so many tokens; graphs for fewer are void."""
        if padded(lanes) > self.step.rows or width > self.step.width:
            self.step = self.step.enlarged(padded(lanes), width)
            if self.graphs is not None:
                self.graphs.clear()

    def choose(self, logits: Tensor, options: StepOptions, automaton: StopAutomaton, first: int = 0) -> None:
        """Sample the first token of lanes in the rows from ``first`` on, whose logits are at hand."""
        self.step.choose(logits, options, automaton, self._eos_ids, first)

    def _drop(self, decoder: SlabDecoder, step: TokenStep, alive: Tensor, total: int) -> int:
        """Leave only rows of lanes that are alive; returns how many."""
        before = decoder.lanes
        row_of = torch.zeros(total, dtype=torch.long, device=before.device)
        row_of[before] = torch.arange(len(before), device=before.device)
        decoder.keep(alive)
        step.take(row_of[decoder.lanes])
        decoder.fill_up(padded(len(decoder.lanes)))
        return len(decoder.lanes)

    def advance(self, slab: KVSlab, longest: int, lanes: int, options: StepOptions, automaton: StopAutomaton) -> None:
        """Append the last token of the lanes in the first rows, and sample the next one.

        :param int longest: bound on the tokens of any of them, with the one that is appended; the slab has so many columns.
        :param int lanes: how many rows take part, a number that :func:`padded` gives.
        """
        stop = min(-(-longest // self._kv_bucket) * self._kv_bucket, slab.capacity)
        step = self.step

        def body() -> None:
            logits = step.advance(self._engine, slab, lanes, stop)
            step.choose(logits, options, automaton, self._eos_ids)

        if self.graphs is None:
            return body()
        began = time.perf_counter()
        law = (options.temperature, options.top_k, options.top_p)
        if self.graphs.run(slab, (lanes, stop, law, automaton), body):
            self._engine.counted(began)
