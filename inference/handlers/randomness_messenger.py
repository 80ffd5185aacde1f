"""Random numbers that no algorithm sees."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..util.process_state import rng_state


class RandomnessMessenger(Messenger):
    """Refuses a model that draws random numbers outside of the sites that are visible to the algorithm.

    Latent sites hidden by ``poutine.block``, and numbers drawn without a site, are integrated out by algorithms that run a model once. One
    that runs it again along known values would meet other numbers there. Enter it as the innermost handler: then it hears of a site before
    its value is drawn, and again after all is done. Torch's generators are compared at every site, the slower ones of Python and numpy at
    every barrier.
    """

    def __enter__(self) -> RandomnessMessenger:
        self._barriers = 0
        self._at_site = "the start of the model", _torch_generators()
        self._at_barrier = "the start of the model", _other_generators()
        super().__enter__()
        return self

    def _process_message(self, msg: Any) -> None:
        name = self._name(msg)
        require_same(*self._at_site, name, _torch_generators())
        if msg["type"] == "barrier":
            require_same(*self._at_barrier, name, _other_generators())

    def _postprocess_message(self, msg: Any) -> None:
        self._at_site = self._name(msg), _torch_generators()
        if msg["type"] == "barrier":
            self._at_barrier = self._name(msg), _other_generators()
            self._barriers += 1

    def finish(self) -> None:
        """The model has come to its end.

        :raises ValueError: if random numbers were drawn since the last site.
        """
        require_same(*self._at_site, "the end of the model", _torch_generators())
        require_same(*self._at_barrier, "the end of the model", _other_generators())

    def _name(self, msg: Any) -> str:
        return f"barrier {self._barriers}" if msg["type"] == "barrier" else f"{msg['type']} site {msg['name']!r}"


def generators() -> list[Any]:
    """The states of all random number generators."""
    return [*_torch_generators(), *_other_generators()]


def require_same(start: str, before: list[Any], end: str, now: list[Any]) -> None:
    """
    :raises ValueError: if random numbers were drawn between two places in the model.
    """
    if len(before) != len(now) or not all(map(_same, before, now)):
        raise ValueError(
            f"random numbers were drawn outside of visible sites, between {start} and {end}. This algorithm runs the model again along "
            "known values and would meet other numbers there: make them a sample site that no poutine.block hides, or use SMC or "
            "Importance, which integrate them out"
        )


def _torch_generators() -> list[Tensor]:
    state = rng_state()
    return [state["cpu"], *state["cuda"]]


def _other_generators() -> list[Any]:
    return [random.getstate(), *np.random.get_state(legacy=True)]


def _same(first: Any, second: Any) -> bool:
    return torch.equal(first, second) if isinstance(first, Tensor) else bool(np.all(first == second))
