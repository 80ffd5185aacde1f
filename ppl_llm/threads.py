"""CPU threads: how many torch uses, and how long they wait for one another by spinning.

OpenMP's threads meet at the end of every operation, and wait there in a loop that holds their core. Beside other work that is ruinous: a
core that spins keeps the thread it waits for from running. Importing this does not import torch, whose OpenMP runtime reads its settings
once, when it is loaded.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_log = logging.getLogger("ppl_llm")

SETTINGS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
"""Bounds on spinning: iterations of GNU's runtime, which torch has on Linux; milliseconds of LLVM's and Intel's."""

ENOUGH_FOR_ONE = 10_000_000
"""Parameters of a model below which a second thread gains a fifth at most, and loses half beside a load; see ``benchmarks/threads.py``."""

_CHOSEN_BY_USER = ("OMP_", "GOMP_", "KMP_", "MKL_")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def user_chose() -> bool:
    """Whether the environment says how OpenMP's threads should behave; then nothing here changes it."""
    return any(name.startswith(_CHOSEN_BY_USER) and value != SETTINGS.get(name) for name, value in os.environ.items())


def bound_spinning() -> None:
    """Set how long threads spin, for this process and those it starts. It has an effect only before torch is imported."""
    if not user_chose():
        os.environ.update(SETTINGS)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of a container, of which torch knows nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def choose_threads(models: Iterable[Any], workers: int = 1) -> int:
    """Let torch use one thread for small models, and for others what the cores allow; unless the user chose.

    :param models: language and reward models; those without weights here, such as servers, count as small.
    :param int workers: processes that share the cores.
    :returns: the threads that torch uses now.
    """
    import torch

    if not user_chose():
        largest = max(map(_parameters, models), default=0)
        torch.set_num_threads(1 if largest < ENOUGH_FOR_ONE else max(1, usable_cores() // workers))
    return torch.get_num_threads()


def _parameters(model: Any) -> int:
    weights = getattr(getattr(model, "model", None), "parameters", list)
    return sum(weight.numel() for weight in weights())


class SpinWatch:
    """Warns once in a process when forward passes on the CPU take many times their own best, as spinning threads beside a load do.

    Passes are compared with those of about as many tokens in about as long a context. A few slow ones are no sign of anything: it takes
    eight in a row, more than one thread, threads whose spinning nobody bounded, and a machine with more to do than it has cores.
    """

    SLOWER = 8.0
    IN_A_ROW = 8
    _warned = False

    def __init__(self) -> None:
        self._best: dict[tuple[int, int], float] = {}
        self._slow = 0

    def passed(self, tokens: int, context: int, seconds: float) -> None:
        """A forward pass over so many tokens took so long."""
        kind = tokens.bit_length(), context.bit_length()
        best = self._best[kind] = min(seconds, self._best.get(kind, seconds))
        self._slow = self._slow + 1 if seconds > self.SLOWER * best else 0
        if self._slow >= self.IN_A_ROW and not SpinWatch._warned:
            self._slow = 0
            self._warn(seconds / best)

    def _warn(self, slower: float) -> None:
        import torch

        threads, load = torch.get_num_threads(), _load()
        if threads < 2 or user_chose() or os.environ.keys() & SETTINGS.keys() or load <= usable_cores():
            return
        SpinWatch._warned = True
        _log.warning(
            "forward passes now take %.0f times as long as their best: the machine has a load of %.1f, and torch's %d threads spin while "
            "they wait for one another. Set GOMP_SPINCOUNT=20000 (LLVM's or Intel's OpenMP: KMP_BLOCKTIME=1) before Python starts, or call "
            "torch.set_num_threads(1)",
            slower,
            load,
            threads,
        )


def _load() -> float:
    return os.getloadavg()[0] if sys.platform != "win32" else 0.0
