"""Random numbers that no algorithm sees."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger

from ..util.process_state import rng_state


class RandomnessMessenger(Messenger):
    """Refuses a model that draws random numbers outside of the sites that are visible to the algorithm.

    Latent sites hidden by ``poutine.block``, and numbers drawn without a site, are integrated out by algorithms that run a model once. One
    that runs it again along known values would meet other numbers there. Enter it as the innermost handler.
    """

    def __enter__(self) -> RandomnessMessenger:
        self._barriers = 0
        self._note("the start of the model")
        super().__enter__()
        return self

    def _process_message(self, msg: Any) -> None:
        self._compare(self._name(msg))

    def _postprocess_message(self, msg: Any) -> None:
        self._note(self._name(msg))
        self._barriers += msg["type"] == "barrier"

    def finish(self) -> None:
        """The model has come to its end.

        :raises ValueError: if random numbers were drawn since the last site.
        """
        self._compare("the end of the model")

    def _name(self, msg: Any) -> str:
        return f"barrier {self._barriers}" if msg["type"] == "barrier" else f"{msg['type']} site {msg['name']!r}"

    def _note(self, place: str) -> None:
        self._place, self._before = place, _generators()

    def _compare(self, place: str) -> None:
        if not _same(self._before, _generators()):
            raise ValueError(
                f"random numbers were drawn outside of visible sites, between {self._place} and {place}. This algorithm runs the model "
                "again along known values and would meet other numbers there: make them a sample site that no poutine.block hides, or use "
                "SMC or Importance, which integrate them out"
            )


def _generators() -> tuple[Any, ...]:
    torch_state, numpy_state = rng_state(), np.random.get_state(legacy=True)
    return torch_state["cpu"], *torch_state["cuda"], random.getstate(), *numpy_state


def _same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.all(a == b)) for a, b in zip(first, second, strict=True)
    )
