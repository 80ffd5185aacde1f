"""What a stopping rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ..posterior.adaptive_posterior import AdaptivePosterior

Until = Callable[[AdaptivePosterior], bool]
"""Whether a run of one problem may stop, given what was drawn so far and nothing else."""


class StoppingRule(ABC):
    """A rule of this package; any function of an :class:`AdaptivePosterior` serves as well.

    :cvar str needs: ``votes``, ``rewards``, or ``groups``: what the algorithm inside must give.
    """

    needs: ClassVar[str] = "votes"

    @abstractmethod
    def __call__(self, posterior: AdaptivePosterior) -> bool:
        """Whether to stop."""
