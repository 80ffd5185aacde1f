"""Work of a device beside what is asked of it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
