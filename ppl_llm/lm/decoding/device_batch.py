"""Steps of several programs in one batch whose state lies on the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor

from ...context import LaneMemo
from ...inference.cost import Uncounted
from ...kv_cache.cache import KVSlab
from ...kv_cache.engine import PrefixEngine
from ...kv_cache.memory_limit import CacheTooLarge
from ...kv_cache.pool import Lease
from ..base import StepOptions
from ..stopping import StopAutomaton
from .cached_decoder import close_ranks
from .counted_request import CountedRequest
from .device_loop import DeviceLoop, LaneTask, padded
from .side_stream import SideStream


class LaneRequest(CountedRequest):
    """A step of the lanes of one program.

    :param DeviceBatch service: samples it together with others.
    :param LaneTask task: with a decoder whose slab is reserved for it.
    :ivar int lanes: that went on when the host last looked.
    :ivar Tensor rows: ``[A]`` where each lane lies in the batch, -1 once it has left it; this and ``slots [A]`` on the host.
    :ivar int begin: tokens that all lanes had before.
    :ivar int left: tokens that its lanes may still take.
    """

    def __init__(self, service: DeviceBatch, task: LaneTask) -> None:
        super().__init__(service, len(task.decoder.lanes))
        self.task = task
        self.rows = self.slots = torch.empty(0, dtype=torch.long)
        self.begin, self.left = 0, task.uniforms.shape[1]

    def results(self, lanes: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Fill in what some lanes, by their number in the decoder, have sampled."""
        flat = self.task.decoder.lanes[lanes]
        self.task.tokens[flat], self.task.log_probs[flat] = tokens[:, : self.task.tokens.shape[1]], log_probs


class DeviceBatch:
    """Advances the steps of several programs by eight tokens at a time, in one slab that they share meanwhile.

    Lanes are copied into the first rows of the shared slab when their step begins, and what has been added to them is copied back when they
    leave: that is little beside the passes in between, each of which reads all keys, and lets one CUDA graph serve whoever takes part.
    The host looks at the flags of one round of tokens, lets lanes leave and join, and queues the next round without waiting for it:
    programs whose step has ended, and their reward models, go on while the device works on the steps of the others.

    :param PrefixEngine engine: of the language model.
    :param DeviceLoop loop: whose captures and lanes nobody else uses; also an attribute.
    :param StepOptions options: of all steps, but for ``max_tokens``.
    """

    def __init__(self, engine: PrefixEngine, loop: DeviceLoop, options: StepOptions, automaton: StopAutomaton) -> None:
        self._engine, self.loop, self._options, self._automaton = engine, loop, options, automaton
        self._aside = SideStream(engine.device)
        self._members: list[LaneRequest] = []
        self._number = 0  # lanes in the batch, dead ones included
        self._longest = 0
        self._slab: KVSlab | None = None
        self._lease: Lease | None = None
        self._reservation = ExitStack()

    @property
    def idle(self) -> bool:
        return not self._members

    @torch.no_grad()
    def advance(self, requests: Sequence[LaneRequest]) -> None:
        """Finish the round under way, and queue another one with the lanes of these requests."""
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

    def forget(self, request: LaneRequest) -> None:
        """For a program that does not wait any more."""
        if request in self._members:  # it has been stopped
            self._aside.wait()
            self.loop.step.alive[request.rows[request.rows >= 0].to(self._engine.device)] = False
            self._members.remove(request)
            if not self._members:
                self._close()

    def _collect(self) -> None:
        """Look at the lanes; let dead ones leave if anybody has finished or a smaller batch will do."""
        if self._slab is None:
            return
        step = self.loop.step
        alive, lengths = torch.stack([step.alive[: self._number].long(), self._slab.lengths[: self._number]]).cpu().unbind()
        alive = alive.bool()
        for member in self._members:
            member.lanes = int(alive[member.rows[member.rows >= 0]].sum())
        finished = [member for member in self._members if member.lanes == 0]
        if finished or padded(int(alive.sum())) < padded(self._number):
            for member in self._members:
                self._send_back(member, ~alive, lengths)
            self._close_ranks(alive, lengths)
            lengths = lengths[alive]
        for member in finished:
            member.finished = True
            self._members.remove(member)
        self._longest = max(lengths.tolist(), default=0)  # those of dead lanes that stay included, which still write behind their end

    def _send_back(self, member: LaneRequest, leaving: Tensor, lengths: Tensor) -> None:
        """Give a program what those of its lanes have sampled that lie in rows which leave, and their slab the keys of it."""
        assert self._slab is not None
        device, step, slab = self._engine.device, self.loop.step, member.task.decoder.slab
        lanes = ((member.rows >= 0) & leaving[member.rows]).nonzero()[:, 0]
        if len(lanes) == 0:
            return
        rows, slots = member.rows[lanes], member.slots[lanes].to(device)
        member.results(lanes.to(device), step.tokens[slots], step.log_probs[slots])
        end = int(lengths[rows].max())
        with suppress(CacheTooLarge):  # the keys are made again at the next step
            self._engine.reserve(slab, slab.num_rows, end)
            slab.take(self._slab, rows.to(device), lanes.to(device), member.begin, end)
        member.rows[lanes] = -1

    def _close_ranks(self, alive: Tensor, lengths: Tensor) -> None:
        """Leave only rows of lanes that are alive."""
        assert self._slab is not None
        device = self._engine.device
        number, holes, movers = close_ranks(alive)
        row_of = torch.arange(len(alive)).index_copy(0, movers, holes)
        for member in self._members:
            member.rows = torch.where(member.rows < 0, -1, row_of[member.rows])
        if len(movers):
            self._slab.take(self._slab, movers.to(device), holes.to(device), 0, int(lengths[movers].max()))
        self.loop.step.take(torch.arange(number).index_copy(0, holes, movers).to(device))
        self._slab.lengths[number:] = 0
        self._number = number

    def _join(self, request: LaneRequest) -> None:
        """Copy lanes whose step begins behind the others, and sample their first token."""
        (decoder, uniforms, room, *_), device, first = request.task, self._engine.device, self._number
        lanes, number, width = len(decoder.lanes), first + len(decoder.lanes), uniforms.shape[1]
        slab = self._open()
        try:
            self._engine.reserve(slab, padded(number), decoder.longest)
            self.loop.make_room(number, width)
            rows, own = torch.arange(first, number, device=device), torch.arange(lanes, device=device)
            slab.take(decoder.slab, own, rows, 0, decoder.longest)
        except Exception as error:  # whatever it is, it is for the program that asked
            slab.lengths[first:] = 0
            if not (isinstance(error, CacheTooLarge) and self._members):  # in which case it joins when others have left
                request.fail(error)
            return
        free = torch.ones(self.loop.step.rows, dtype=torch.bool)
        for member in self._members:
            free[member.slots[member.rows >= 0]] = False
        request.rows, request.slots = torch.arange(first, number), free.nonzero()[:lanes, 0]
        request.begin, request.left = int(decoder.slab.lengths[:lanes].min()), width - 1
        self.loop.step.join(first, request.slots.to(device), uniforms[decoder.lanes], room[decoder.lanes])
        self.loop.choose(decoder.logits, self._options, self._automaton, first)
        self._members.append(request)
        self._number, self._longest = number, max(self._longest, decoder.longest)

    def _queue(self) -> None:
        """Ask the device for a round of tokens."""
        if not self._members or self._slab is None:
            return self._close()
        passes = min(self.loop.check_every, max(member.left for member in self._members))
        rows, slab = padded(self._number), self._slab
        self._engine.reserve(slab, rows, min(self._longest + passes, slab.max_length))
        began = time.perf_counter()
        with Uncounted(), self._aside.work():
            for _ in range(passes):
                self._longest = min(self._longest + 1, slab.max_length)
                self.loop.advance(slab, self._longest, rows, self._options, self._automaton)
        seconds, lanes = time.perf_counter() - began, sum(member.lanes for member in self._members)
        for member in self._members:
            mine = min(passes, member.left)
            member.charge(seconds * member.lanes / lanes, mine)
            member.left -= mine

    def _open(self) -> KVSlab:
        """The slab of the batch, the last one if it still exists."""
        if self._slab is None:
            pool = self._engine.pool
            self._slab = pool.take(None if self._lease is None else LaneMemo(self._lease, {}))
            self._lease = pool.lease(self._slab)
            self._reservation.enter_context(pool.reserved(self._slab))
            self._slab.lengths.zero_()
            self.loop.step.leave(0)
        return self._slab

    def _close(self) -> None:
        """No lanes are left."""
        self._members.clear()
        self._number = self._longest = 0
        self._slab = None
        self._reservation.close()
