"""Steps of several programs in one batch whose state lies on the device."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor

from ...context_cache import CacheEntry
from ...inference.concurrent.program import current_program
from ...inference.cost import Uncounted
from ...kv_cache.cache import KVCache
from ...kv_cache.engine import CacheEngine
from ...kv_cache.memory_limit import CacheTooLarge
from ...kv_cache.pool import Lease
from ..base import StepOptions
from ..stopping import StopAutomaton
from ..token_figures import TokenFigure
from .cached_decoder import CachedDecoder, CachedLogits, close_ranks
from .cuda_graphs import SideStream
from .decoder import StepTask
from .device_loop import DeviceLoop, padded
from .device_state import DeviceState
from .joint_decoding import CountedRequest

_MOST = 8
"""Batches kept while nobody is in them, for their KV cache and their graphs."""


class BatchedStep(CountedRequest):
    """A step of the sequences of one program.

    :param DeviceBatch service: samples it together with others.
    :param CachedDecoder decoder: of the sequences; its KV cache is reserved for it.
    :param StepTask task: where the results go.
    :ivar int sequences: how many were alive when the host last looked.
    :ivar Tensor rows: ``[A]`` where each sequence lies in the batch, -1 once it has left it; this and ``outputs [A]`` on the host.
    :ivar int begin: tokens that all sequences had before.
    :ivar int left: tokens that its sequences may still take.
    """

    def __init__(self, service: DeviceBatch, decoder: CachedDecoder, task: StepTask) -> None:
        super().__init__(service, len(decoder.sequences))
        self.decoder, self.task = decoder, task
        self.rows = self.outputs = torch.empty(0, dtype=torch.long)
        self.begin, self.left = 0, task.options.max_tokens

    def results(self, members: Tensor, state: DeviceState, outputs: Tensor) -> None:
        """Fill in what some sequences, by their number in the decoder and output rows, have sampled."""
        flat, task = self.decoder.sequences[members], self.task
        task.tokens[flat], task.log_probs[flat] = state.tokens[outputs, : task.tokens.shape[1]], state.log_probs[outputs]
        task.values[flat] = state.values[outputs, : task.tokens.shape[1], : len(task.figures)]


class DeviceBatch:
    """Advances the steps of several programs by eight tokens at a time, in one KV cache that they share meanwhile.

    Sequences are copied into the first rows of the shared KV cache when their step begins, and what has been added to them is copied back
    when they leave. That is little beside the passes in between, each of which reads all keys, and lets one CUDA graph serve all of them.
    The host looks at the flags of one chunk of tokens, lets sequences leave and join, and queues the next chunk without waiting for it:
    programs whose step has ended, and their reward models, continue while the device works on the steps of the others.

    :param CacheEngine engine: of the language model.
    :param DeviceLoop loop: whose captures and sequences nobody else uses; also an attribute.
    :param StepOptions options: of all steps, but for ``max_tokens``.
    :param tuple figures: wanted of all tokens.
    """

    def __init__(
        self,
        engine: CacheEngine,
        loop: DeviceLoop,
        options: StepOptions,
        automaton: StopAutomaton,
        figures: tuple[TokenFigure, ...] = (),
    ) -> None:
        self._engine, self.loop, self._options, self._automaton, self._figures = engine, loop, options, automaton, figures
        self._aside = SideStream(engine.device)
        self._members: list[BatchedStep] = []
        self._number = 0  # sequences in the batch, dead ones included
        self._longest = 0
        self._cache: KVCache | None = None
        self._lease: Lease | None = None
        self._reservation = ExitStack()

    @property
    def idle(self) -> bool:
        return not self._members

    @torch.no_grad()
    def advance(self, requests: Sequence[BatchedStep]) -> None:
        """Finish the chunk in progress, and queue another one with the sequences of these requests."""
        try:
            self._aside.wait()
            self._collect()
            for request in requests:
                if not request.finished and request not in self._members:
                    self._join(request)
            self._queue()
        except Exception as error:  # of a pass that they share
            for request in self._members:
                request.fail(error)
            self._close()

    def forget(self, request: BatchedStep) -> None:
        """For a program that does not wait any more."""
        if request in self._members:  # it has been stopped
            self._aside.wait()
            self.loop.state.alive[request.rows[request.rows >= 0].to(self._engine.device)] = False
            self._members.remove(request)
            if not self._members:
                self._close()

    def _collect(self) -> None:
        """Look at the sequences; let dead ones leave if anybody has finished or a smaller batch will do."""
        if self._cache is None:
            return
        state = self.loop.state
        alive, lengths = torch.stack([state.alive[: self._number].long(), self._cache.lengths[: self._number]]).cpu().unbind()
        alive = alive.bool()
        for member in self._members:
            member.sequences = int(alive[member.rows[member.rows >= 0]].sum())
        finished = [member for member in self._members if member.sequences == 0]
        if finished or padded(int(alive.sum())) < padded(self._number):
            for member in self._members:
                self._send_back(member, ~alive, lengths)
            self._close_ranks(alive, lengths)
            lengths = lengths[alive]
        for member in finished:
            member.finished = True
            self._members.remove(member)
        self._longest = max(lengths.tolist(), default=0)  # those of dead sequences that stay included, which still write behind their end

    def _send_back(self, member: BatchedStep, leaving: Tensor, lengths: Tensor) -> None:
        """Give a program what those of its sequences have sampled that lie in rows which leave, and their KV cache the keys of it."""
        assert self._cache is not None
        device, state, cache = self._engine.device, self.loop.state, member.decoder.cache
        own = ((member.rows >= 0) & leaving[member.rows]).nonzero()[:, 0]
        if len(own) == 0:
            return
        rows, outputs = member.rows[own], member.outputs[own].to(device)
        member.results(own.to(device), state, outputs)
        end = int(lengths[rows].max())
        with suppress(CacheTooLarge):  # the keys are made again at the next step
            self._engine.reserve(cache, cache.num_rows, end)
            cache.take(self._cache, rows.to(device), own.to(device), member.begin, end)
        member.rows[own] = -1

    def _close_ranks(self, alive: Tensor, lengths: Tensor) -> None:
        """Leave only rows of sequences that are alive."""
        assert self._cache is not None
        device = self._engine.device
        number, holes, movers = close_ranks(alive)
        row_of = torch.arange(len(alive)).index_copy(0, movers, holes)
        for member in self._members:
            member.rows = torch.where(member.rows < 0, -1, row_of[member.rows])
        if len(movers):
            self._cache.take(self._cache, movers.to(device), holes.to(device), 0, int(lengths[movers].max()))
        self.loop.state.take(torch.arange(number).index_copy(0, holes, movers).to(device))
        self._cache.lengths[number:] = 0
        self._number = number

    def _join(self, request: BatchedStep) -> None:
        """Copy sequences whose step begins behind the others, and sample their first token."""
        decoder, task, device, first = request.decoder, request.task, self._engine.device, self._number
        added, number, width = len(decoder.sequences), first + len(decoder.sequences), task.options.max_tokens
        cache = self._open()
        try:
            self._engine.reserve(cache, padded(number), decoder.longest)
            self.loop.make_room(number, width, len(self._figures))
            rows, own = torch.arange(first, number, device=device), torch.arange(added, device=device)
            cache.take(decoder.cache, own, rows, 0, decoder.longest)
        except Exception as error:  # whatever it is, it is for the program that asked
            cache.lengths[first:] = 0
            if not (isinstance(error, CacheTooLarge) and self._members):  # in which case it joins when others have left
                request.fail(error)
            return
        free = torch.ones(self.loop.state.rows, dtype=torch.bool)
        for member in self._members:
            free[member.outputs[member.rows >= 0]] = False
        request.rows, request.outputs = torch.arange(first, number), free.nonzero()[:added, 0]
        request.begin, request.left = int(decoder.cache.lengths[:added].min()), width - 1
        own = decoder.sequences
        self.loop.state.join(first, request.outputs.to(device), task.watch[own], task.uniforms[own], task.room[own])
        self.loop.choose(decoder.logits, self._options, self._automaton, first, self._figures)
        self._members.append(request)
        self._number, self._longest = number, max(self._longest, decoder.longest)

    def _queue(self) -> None:
        """Queue a chunk of tokens on the device."""
        if not self._members or self._cache is None:
            return self._close()
        passes = min(self.loop.check_every, max(member.left for member in self._members))
        rows, cache = padded(self._number), self._cache
        self._engine.reserve(cache, rows, min(self._longest + passes, cache.max_length))
        began = time.perf_counter()
        with Uncounted(), self._aside.work():
            for _ in range(passes):
                self._longest = min(self._longest + 1, cache.max_length)
                self.loop.advance(cache, self._longest, rows, self._options, self._automaton, self._figures)
        seconds, total = time.perf_counter() - began, sum(member.sequences for member in self._members)
        for member in self._members:
            mine = min(passes, member.left)
            member.charge(seconds * member.sequences / total, mine)
            member.left -= mine

    def _open(self) -> KVCache:
        """The KV cache of the batch, the last one if it still exists."""
        if self._cache is None:
            pool = self._engine.pool
            self._cache = pool.take(None if self._lease is None else CacheEntry(self._lease, {}))
            self._lease = pool.lease(self._cache)
            self._reservation.enter_context(pool.reserved(self._cache))
            self._cache.lengths.zero_()
            self.loop.state.leave(0)
        return self._cache

    def _close(self) -> None:
        """No sequences are left."""
        self._members.clear()
        self._number = self._longest = 0
        self._cache = None
        self._reservation.close()


class DeviceSampler:
    """Samples steps of a model that lies on one device; those of several programs in one batch for each distribution and stop.

    :param CachedLogits source: of the language model.
    :param DeviceLoop loop: of programs that are alone; batches capture as it does. Also an attribute.
    """

    batches_programs = True

    def __init__(self, source: CachedLogits, loop: DeviceLoop) -> None:
        self._source, self.loop = source, loop
        self._batches: dict[Hashable, DeviceBatch] = {}

    @property
    def batches(self) -> list[DeviceBatch]:
        return list(self._batches.values())

    def sample(self, task: StepTask) -> None:
        """Fill in the tokens and log-probabilities of a step."""
        decoder = self._source.decoder(task.context, task.active)
        program = current_program()
        if program is None:
            return self.loop.run(decoder, task)
        batch = self._batch(task)
        with decoder.reserved():
            request = BatchedStep(batch, decoder, task)
            try:
                program.wait(request)
            finally:
                batch.forget(request)

    def _batch(self, task: StepTask) -> DeviceBatch:
        options = task.options
        key = options.temperature, options.top_k, options.top_p, task.automaton, task.figures
        batch = self._batches.pop(key, None)
        if batch is None:
            batch = DeviceBatch(self._source.engine, self.loop.another(), options, task.automaton, task.figures)
        self._batches[key] = batch  # the most recently used last
        for idle in [key for key, batch in self._batches.items() if batch.idle][:-_MOST]:
            del self._batches[idle]
        return batch
