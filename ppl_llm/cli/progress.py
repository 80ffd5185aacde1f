"""What happens while a run is under way, on stderr."""

from __future__ import annotations

import time
from collections import deque
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .details import details
from .json_log import JsonLog

if TYPE_CHECKING:
    from ..inference import ParticlePosterior

_REFRESH_SECONDS = 0.25
_ROWS = 12
"""Steps shown at a time."""


class Row(NamedTuple):
    """One step of a run, or one iteration or stage."""

    unit: str
    step: int
    ess: float
    particles: int
    resampled: bool
    finished: int
    rate: float

    def __str__(self) -> str:
        resampled = "resampled, " if self.resampled else ""
        return (
            f"{self.unit} {self.step}: ESS {self.ess:.1f} of {self.particles}, {resampled}"
            f"{self.finished} of {self.particles} finished, {self.rate:,.0f} tokens/s"
        )


class Progress:
    """A live table where stderr is a terminal; lines with ``verbose``; silence otherwise. Use it as a context and as ``callback``.

    :param Console console: of stderr.
    :param str title: of the table.
    :param bool verbose: print a line per step where there is no terminal.
    :param str unit: what the algorithm calls back after: ``step``, ``batch``, ``iteration`` or ``stage``.
    :param JsonLog log: where the steps go as events instead.
    :param int max_tokens: of a solution; half of them without an answer are worth a note.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        verbose: bool = False,
        unit: str = "step",
        log: JsonLog | None = None,
        max_tokens: int | None = None,
    ) -> None:
        from ..inference import CostMeter
        from ..lm.decoding.watching import watching

        self._watching = watching
        self.console, self.title, self.unit, self.count, self.log = console, title, unit, 0, log
        self.lines = verbose and not console.is_terminal and log is None
        self.max_tokens, self.rambling = max_tokens, False
        self._alive = self._tokens = self._token_steps = 0
        self._shown = 0.0
        self.rows: deque[Row] = deque(maxlen=_ROWS)
        self._meter = CostMeter()
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal and log is None else None

    def __enter__(self) -> Progress:
        self._meter.__enter__()
        self._watch_tokens = self._watching(self._token) if self._live is not None else nullcontext()
        self._watch_tokens.__enter__()
        self._start = time.perf_counter()
        if self._live is not None:
            self._live.start()
            self._live.update(self._table(), refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        self._watch_tokens.__exit__(kind, error, trace)
        self._meter.__exit__(kind, error, trace)

    def __call__(self, posterior: ParticlePosterior) -> None:
        """:param ParticlePosterior posterior: after a step, of a model that returns its context."""
        rate = self._meter.totals["tokens_sampled"] / max(time.perf_counter() - self._start, 1e-9)
        self.count += 1
        done = int(posterior.value.finished.sum())
        if self.unit == "iteration":  # a whole filter, with barriers of its own
            ess, resampled = float(posterior.get_ESS()), bool(posterior.resampled.any())
        else:
            told = details(posterior)
            ess, resampled = told.ess[-1], told.resampled[-1]
            if self.unit == "batch":  # of all batches, as are the particles
                ess = float(posterior.get_ESS())
        self._watch(posterior)
        self.rows.append(Row(self.unit, self.count, ess, posterior.num_particles, resampled, done, rate))
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        if self.log is not None:
            self.log.event("step", **self.rows[-1]._asdict())
        if self.lines:
            self.console.print(str(self.rows[-1]), markup=False, highlight=False, soft_wrap=True)

    def _watch(self, posterior: ParticlePosterior) -> None:
        """Say once that solutions ramble: half of the tokens are spent, and most of them have no answer."""
        if self.max_tokens is None or self.rambling:
            return
        context = posterior.value
        written = (context.lengths - context.prompt_lengths).flatten()
        if not bool((written >= self.max_tokens / 2).any()):
            return
        without = sum(answer is None for answer in context.answers())
        if 2 * without > posterior.num_particles:
            self.rambling = True
            note = (
                f"{without} of {posterior.num_particles} solutions have no answer after up to {int(written.max())} of {self.max_tokens} "
                "tokens: ask for "
                "\\boxed{...} in the problem or with --system-prompt, lower --temperature, or see --answer-fallback last-number"
            )
            if self.log is not None:
                self.log.event("note", message=note)
            else:
                self.console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _token(self, alive: int) -> None:
        """After each token, with the number of sequences that continue: the line below the table moves four times a second."""
        now = time.perf_counter()
        self._alive, self._tokens, self._token_steps = alive, self._tokens + alive, self._token_steps + 1
        if self._live is not None and now - self._shown > _REFRESH_SECONDS:
            self._shown = now
            self._live.update(self._table(), refresh=True)

    def _caption(self) -> str:
        """Sequences alive, tokens per second, and the time that is left at most where solutions are bounded."""
        seconds = time.perf_counter() - self._start
        text = f"{self._alive} sequences alive, {self._tokens / max(seconds, 1e-9):,.0f} tokens/s, {seconds:.0f} s"
        if self.max_tokens is None or self.unit != "step" or not self._token_steps:
            return text
        left = max(0.0, self.max_tokens - self._token_steps) * seconds / self._token_steps
        return f"{text}, at most {left:.0f} s left"

    def _table(self) -> Table:
        caption = self._caption() if self._token_steps else None
        table = Table(title=self.title, title_justify="left", caption=caption, caption_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in (self.unit, "ESS", "resampled", "finished", "tokens/s"):
            table.add_column(name, justify="right", style="dim" if name == "resampled" else "")
        for row in self.rows:
            finished = f"{row.finished} of {row.particles}"
            table.add_row(str(row.step), f"{row.ess:.1f}", "yes" if row.resampled else "", finished, f"{row.rate:,.0f}")
        return table
