"""CUDA graphs of token steps: captured once, replayed without host launches."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ...inference.cost import Uncounted
from ...kv_cache.cache import KVCache

_log = logging.getLogger(__name__)

_MOST = 64
"""Graphs kept for one KV cache; each holds some megabytes of the device."""

Body = Callable[[], None]
Capture = Callable[[Body], Body]
"""Records what a call does to the device without doing it, and gives a function that does it."""


class CudaCapture:
    """Captures calls as CUDA graphs. All share one pool of memory, as they run one after the other and leave nothing in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, body: Body) -> Body:
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                body()
            self._pool = graph.pool()
        return graph.replay


@dataclass
class _Graphs:
    """Graphs that write to the memory which a KV cache had at one time; ``None`` for a call that has been made once, as it is."""

    version: int
    by_key: dict[Hashable, Body | None] = field(default_factory=dict)


class StepGraphs:
    """Makes a call as it is the first time, which also readies the device's libraries for it; captures and replays it from then on.

    If a capture fails, a warning says so once, and every call is made as it is.

    :param capture: how to capture.
    :ivar int captured: graphs made so far.
    :ivar str failure: why nothing is captured any more; empty if all is well.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._of_cache: weakref.WeakKeyDictionary[KVCache, _Graphs] = weakref.WeakKeyDictionary()
        self.captured = 0
        self.failure = ""

    def run(self, cache: KVCache, key: Hashable, body: Body) -> bool:
        """Make a call, or replay it.

        :param KVCache cache: what the call reads and writes, beside tensors that never move.
        :param key: all that the call depends on and that is no content of a tensor.
        :returns: whether it was replayed, so that nothing on the host has seen it.
        """
        if self.failure:
            body()
            return False
        graphs = self._of_cache.get(cache)
        if graphs is None or graphs.version != cache.version:
            graphs = self._of_cache[cache] = _Graphs(cache.version)
        if key not in graphs.by_key:
            while len(graphs.by_key) >= _MOST:
                graphs.by_key.pop(next(iter(graphs.by_key)))
            graphs.by_key[key] = None
            body()
            return False
        replay = graphs.by_key.pop(key) or self._captured(body)
        graphs.by_key[key] = replay  # the most recently used last
        if replay is None:
            body()
            return False
        replay()
        return True

    def _captured(self, body: Body) -> Body | None:
        try:
            with Uncounted():
                replay = self._capture(body)
        except RuntimeError as error:
            first = error.__context__ or error  # ending a capture that has failed raises another error
            self.failure = f"{type(first).__name__}: {(str(first).splitlines() or [''])[0]}"
            _log.warning("the token step is launched operation by operation, as it cannot be captured as a CUDA graph: %s", self.failure)
            return None
        self.captured += 1
        return replay

    def clear(self) -> None:
        """Forget all graphs."""
        self._of_cache.clear()


class SideStream:
    """A CUDA stream of its own; on other devices work is done as usual."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is asked for in the block follows all that has been asked for before it, and runs beside what is asked for after it.

        What it writes to must not be used, and what it reads must be neither written to nor freed, before :meth:`wait`.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """Let everything that is asked for from now on follow the work, without waiting on the host."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
