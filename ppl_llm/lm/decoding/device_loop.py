"""The token loop for accelerators: the host looks at the sequences once in a while instead of at every token."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ...kv_cache.cache import KVCache
from ...kv_cache.engine import CacheEngine
from ..base import StepOptions
from ..stopping import StopAutomaton
from ..token_figures import TokenFigure
from .cached_decoder import CachedDecoder
from .cuda_graphs import Capture, StepGraphs
from .decoder import StepTask
from .device_state import DeviceState

_CHECK_EVERY = 8
"""Tokens between two looks at the flags; each look waits for the device."""

_KV_BUCKET = 256
"""The columns that attention reads are rounded up to a multiple of this."""


def padded(number: int) -> int:
    """Rows that a batch of sequences is filled up to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... A graph is captured for each such number."""
    power = 1 << max(number - 1, 0).bit_length()
    return power * 3 // 4 if power > 16 and number <= power * 3 // 4 else power


class DeviceLoop:
    """Samples steps like :class:`~ppl_llm.lm.decoding.step_sampler.StepSampler`, with the same results up to rounding.

    :param CacheEngine engine: of the language model.
    :param Tensor eos_ids: token ids that end the text.
    :param capture: how token steps are captured; ``None`` to launch each operation from the host.
    :param int check_every: tokens between two looks at which sequences are alive.
    :param int kv_bucket: see ``_KV_BUCKET``; smaller ones are for tests.
    :ivar graphs: the captured steps, if any.
    :ivar DeviceState state: the sequences' state.
    """

    def __init__(
        self,
        engine: CacheEngine,
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
        self.state = DeviceState(0, 0, engine.device)

    def another(self) -> DeviceLoop:
        """One like this with its own sequences."""
        return DeviceLoop(self._engine, self._eos_ids, self._capture, check_every=self.check_every, kv_bucket=self._kv_bucket)

    def run(self, decoder: CachedDecoder, task: StepTask) -> None:
        """Sample a step."""
        options, automaton, figures, first = task.options, task.automaton, task.figures, decoder.sequences
        number = len(first)
        self.make_room(number, options.max_tokens, len(figures))
        state = self.state
        state.begin(task.watch[first], task.uniforms[first], task.room[first])
        self.choose(decoder.logits, options, automaton, figures=figures)
        decoder.fill_up(padded(number))
        for k in range(1, options.max_tokens):
            if k % self.check_every == 0:
                alive = state.alive[:number].cpu()
                if not alive.any():
                    break
                if padded(int(alive.sum())) < padded(number):
                    number = self._drop(decoder, state, alive, task.uniforms.shape[0])
            self.advance(*decoder.grow(padded(number)), padded(number), options, automaton, figures)
        task.tokens[first] = state.tokens[: len(first), : options.max_tokens]
        task.log_probs[first] = state.log_probs[: len(first)]
        task.values[first] = state.values[: len(first), : options.max_tokens, : len(figures)]

    def make_room(self, number: int, width: int, num_figures: int = 0) -> None:
        """Let there be so many sequences, with steps of so many tokens and so many figures; graphs for fewer are void."""
        if padded(number) > self.state.rows or width > self.state.width or num_figures > self.state.num_figures:
            self.state = self.state.enlarged(padded(number), width, num_figures)
            if self.graphs is not None:
                self.graphs.clear()

    def choose(
        self, logits: Tensor, options: StepOptions, automaton: StopAutomaton, first: int = 0, figures: tuple[TokenFigure, ...] = ()
    ) -> None:
        """Sample the first token of sequences in the rows from ``first`` on, whose logits are at hand."""
        self.state.choose(logits, options, automaton, self._eos_ids, first, figures)

    def _drop(self, decoder: CachedDecoder, state: DeviceState, alive: Tensor, total: int) -> int:
        """Leave only rows of sequences that are alive; returns how many."""
        before = decoder.sequences
        row_of = torch.zeros(total, dtype=torch.long, device=before.device)
        row_of[before] = torch.arange(len(before), device=before.device)
        decoder.keep(alive)
        state.take(row_of[decoder.sequences])
        decoder.fill_up(padded(len(decoder.sequences)))
        return len(decoder.sequences)

    def advance(
        self,
        cache: KVCache,
        longest: int,
        number: int,
        options: StepOptions,
        automaton: StopAutomaton,
        figures: tuple[TokenFigure, ...] = (),
    ) -> None:
        """Append the last token of the sequences in the first rows, and sample the next one.

        :param int longest: bound on the tokens of any of them, with the one that is appended; the KV cache has so many columns.
        :param int number: how many rows take part, a number that :func:`padded` gives.
        """
        stop = min(-(-longest // self._kv_bucket) * self._kv_bucket, cache.capacity)
        state = self.state

        def body() -> None:
            logits = state.advance(self._engine, cache, number, stop)
            state.choose(logits, options, automaton, self._eos_ids, figures=figures)

        if self.graphs is None:
            return body()
        began = time.perf_counter()
        distribution = (options.temperature, options.top_k, options.top_p, figures)
        if self.graphs.run(cache, (number, stop, distribution, automaton), body):
            self._engine.counted(began)
