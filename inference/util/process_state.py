"""Process-wide state that a probabilistic program changes: Pyro's handlers and plates, and the random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK


def rng_state() -> dict[str, Any]:
    """States of torch's default generators of the CPU and, once CUDA is in use, of every GPU: plain tensors."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def set_rng_state(state: dict[str, Any]) -> None:
    """:raises ValueError: for the state of more GPUs than there are."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        here = torch.cuda.device_count()
        if len(state["cuda"]) > here:
            raise ValueError(f"the generator states are those of {len(state['cuda'])} GPUs, here there are {here}")
        for device, each in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(each, device)


@contextmanager
def isolated() -> Iterator[None]:
    """As if no handler and no plate were active: what runs inside is a separate program, e.g. a filter inside a model under a filter.

    Pyro keeps both in one list each for the whole process.
    """
    handlers, plates = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = plates


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
