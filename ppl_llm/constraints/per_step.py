"""Constraints on single steps."""

from __future__ import annotations

from torch import Tensor

from ..inference.util.checked import checked
from .base import Constraint, ConstraintStates, Vocabulary


class PerStep(Constraint):
    """A constraint on each reasoning step by itself, where others are on all that follows the prompt.

    The delimiter belongs to the step, e.g. ``PerStep(Choices(["yes\\n\\n", "no\\n\\n"]))``; the text may end where the step may.

    :param Constraint constraint: on the text of a step.
    """

    @checked
    def __init__(self, constraint: Constraint) -> None:
        self.constraint, self.asks = constraint, constraint.asks

    def __repr__(self) -> str:
        return f"PerStep({self.constraint!r})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ConstraintStates:
        return self.constraint.states(vocabulary, tokens[:, :0])
