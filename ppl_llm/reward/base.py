"""What a process reward model offers to the distributions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ..context import Context


@runtime_checkable
class RewardModel(Protocol):
    """Scores every step of a context. Scores are log-odds in float32, computed from logits and never from probabilities."""

    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds that each step is right.

        :returns: ``[*batch, T]`` float32; a sequence that had finished before a step repeats its last score there.
        :raises ValueError: if a log-odds is nan, naming the sequence.
        """
        ...
