"""Leaving a model at a barrier."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pyro.poutine.messenger import Messenger

from ..util.process_state import rng_state


class Paused(BaseException):
    """Leaves the model. Not an ``Exception``, which a model may catch."""


class PauseMessenger(Messenger):
    """Records at each barrier what a later sweep needs to continue from it.

    Enter it outside the particle filter, which then handles a barrier before this handler does.

    :ivar dict rng: state of the random number generators at the last barrier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rng: dict[str, Any] = {}

    @abstractmethod
    def leaves(self) -> bool:
        """Called after each barrier; ``True`` leaves the model by :class:`Paused`."""

    def _pyro_barrier(self, msg: Any) -> None:
        self.rng = rng_state()
        if self.leaves():
            raise Paused
