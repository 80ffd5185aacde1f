"""The batches of programs that take turns, one for each law and stop of their steps."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from ...inference.concurrent.program import Program
from ...kv_cache.engine import PrefixEngine
from .device_batch import DeviceBatch, LaneRequest
from .device_loop import DeviceLoop, LaneTask

_MOST = 8
"""Batches kept while nobody is in them, for their slab and their graphs."""


class DeviceBatches:
    """
    :param PrefixEngine engine: of the language model.
    :param DeviceLoop loop: of programs that are alone; batches capture as it does.
    """

    def __init__(self, engine: PrefixEngine, loop: DeviceLoop) -> None:
        self._engine, self._loop = engine, loop
        self._batches: dict[Hashable, DeviceBatch] = {}

    def __iter__(self) -> Iterator[DeviceBatch]:
        return iter(self._batches.values())

    def run(self, program: Program, task: LaneTask) -> None:
        """:meth:`DeviceLoop.run` for a program, which waits meanwhile."""
        options = task.options
        key = options.temperature, options.top_k, options.top_p, task.automaton
        batch = self._batches.pop(key, None) or DeviceBatch(self._engine, self._loop.another(), options, task.automaton)
        self._batches[key] = batch  # the most recently used last
        for idle in [key for key, batch in self._batches.items() if batch.idle][:-_MOST]:
            del self._batches[idle]
        with self._engine.pool.reserved(task.decoder.slab):
            request = LaneRequest(batch, task)
            try:
                program.wait(request)
            finally:
                batch.forget(request)
