"""Leaving a model at a barrier."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..util.process_state import rng_state


class Paused(BaseException):
    """Leaves the model. Not an ``Exception``, which a model may catch."""


class PauseMessenger(Messenger):
    """Records at each barrier what a later sweep needs to continue from it.

    Enter it outside the particle filter, which has then dealt with a barrier before this handler hears of it.

    :param dict subsamples: indices that plates drew in the part of the model that is only gone through again.
    :ivar dict rng: state of the random number generators at the last barrier.
    """

    def __init__(self, subsamples: dict[str, Tensor]) -> None:
        super().__init__()
        self.subsamples = dict(subsamples)
        self.rng: dict[str, Any] = {}

    @abstractmethod
    def leaves(self) -> bool:
        """Called after each barrier; ``True`` leaves the model by :class:`Paused`."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["fn"].subsample_size is not None and msg["fn"].subsample_size < msg["fn"].size:
            self.subsamples[msg["name"]] = msg["value"]

    def _pyro_barrier(self, msg: Any) -> None:
        self.rng = rng_state()
        if self.leaves():
            raise Paused
