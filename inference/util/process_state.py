"""What a probabilistic program changes for the whole process: Pyro's handlers and plates, and the random number generators."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from .rng_state import rng_state, set_rng_state


@dataclass(frozen=True)
class ProcessState:
    """A copy of it, so that several programs can take turns as if each were alone."""

    handlers: list[Any]
    plates: list[Any]
    torch: dict[str, Any]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> ProcessState:
        return cls(list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack), rng_state(), random.getstate(), np.random.get_state())

    @classmethod
    def of_seed(cls, seed: int) -> ProcessState:
        """No handlers, and generators as ``pyro.set_rng_seed`` leaves them."""
        before = cls.now()
        try:
            pyro.set_rng_seed(seed)
            seeded = cls.now()
        finally:
            before.enter()
        return cls([], [], seeded.torch, seeded.python, seeded.numpy)

    def enter(self) -> None:
        """Make it the state of the process."""
        _PYRO_STACK[:] = self.handlers
        _DIM_ALLOCATOR._stack[:] = self.plates
        set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
