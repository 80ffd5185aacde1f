"""What ``evaluate`` shows while it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from .json_log import JsonLog

if TYPE_CHECKING:
    from ..evaluation.run import Progress


class Live:
    """A progress line on stderr: batches done, time left, accuracy so far."""

    def __init__(self, console: Console, log: JsonLog | None = None) -> None:
        self.console, self.log, self.began = console, log, time.perf_counter()
        self.shown = 0.0

    def __call__(self, progress: Progress) -> None:
        """:param Progress progress: after a unit."""
        now = time.perf_counter()
        left = progress.total - progress.skipped - progress.done
        rest = (now - self.began) / max(1, progress.done) * left
        best = {method: hits / total for method, (hits, total) in self._best(progress).items()}
        if self.log is not None:
            done = progress.skipped + progress.done
            self.log.event("progress", done=done, total=progress.total, seconds_left=round(rest, 1), accuracy=best)
            return
        if not self.console.is_terminal or (now - self.shown < 0.2 and left):
            return
        self.shown = now
        accuracy = ", ".join(f"{method} {share:.2f}" for method, share in best.items())
        line = f"{progress.skipped + progress.done} of {progress.total} batches, {rest / 60:.0f} min left; {accuracy}"
        self.console.print(line[: self.console.width - 1].ljust(self.console.width - 1), end="\r", highlight=False, markup=False)

    def _best(self, progress: Progress) -> dict[str, tuple[int, int]]:
        """Of each method at its largest budget so far."""
        return {method: value for (method, _), value in sorted(progress.right.items(), key=lambda item: item[0][1])}

    def close(self) -> None:
        """End the line."""
        if self.shown:
            self.console.print()
