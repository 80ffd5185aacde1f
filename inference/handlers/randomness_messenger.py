"""Random numbers that no algorithm sees."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np
from pyro.poutine.messenger import Messenger

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
        self._site = self._barrier = "the start of the model"
        self._at_site, self._at_barrier = _torch_generators(), _other_generators()
        super().__enter__()
        return self

    def _process_message(self, msg: Any) -> None:
        self._compare(self._name(msg), msg["type"] == "barrier")

    def _postprocess_message(self, msg: Any) -> None:
        self._site, self._at_site = self._name(msg), _torch_generators()
        if msg["type"] == "barrier":
            self._barrier, self._at_barrier = self._site, _other_generators()
            self._barriers += 1

    def finish(self) -> None:
        """The model has come to its end.

        :raises ValueError: if random numbers were drawn since the last site.
        """
        self._compare("the end of the model", True)

    def _compare(self, here: str, others: bool) -> None:
        require_same(self._site, self._at_site, here, _torch_generators())
        if others:
            require_same(self._barrier, self._at_barrier, here, _other_generators())

    def _name(self, msg: Any) -> str:
        return f"barrier {self._barriers}" if msg["type"] == "barrier" else f"{msg['type']} site {msg['name']!r}"


def generators() -> list[Any]:
    """The states of all random number generators."""
    return [*_torch_generators(), *_other_generators()]


def require_same(start: str, before: list[Any], end: str, now: list[Any]) -> None:
    """
    :raises ValueError: if random numbers were drawn between two places in the model.
    """
    if before != now:
        raise ValueError(
            f"random numbers were drawn outside of visible sites, between {start} and {end}. This algorithm runs the model again along "
            "known values and would meet other numbers there: make them a sample site that no poutine.block hides, or use SMC or "
            "Importance, which integrate them out"
        )


def _torch_generators() -> list[bytes]:
    state = rng_state()
    return [tensor.numpy().tobytes() for tensor in (state["cpu"], *state["cuda"])]


def _other_generators() -> list[Any]:
    return [random.getstate(), _numpy_generator()]


_KEY_AND_POSITION = 625 * 4
"""Bytes of the state of a Mersenne twister in memory."""


def _numpy_generator() -> Any:
    """The state of numpy's global generator. ``np.random.get_state`` takes some 80 microseconds, its memory 0.4."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(generator, np.random.MT19937):
        return ctypes.string_at(generator.ctypes.state_address, _KEY_AND_POSITION)
    return repr(generator.state)
