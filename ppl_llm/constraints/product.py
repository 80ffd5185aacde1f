"""Constraints made of others."""

from __future__ import annotations

from torch import Tensor

from .base import Constraint, ConstraintStates, Vocabulary


class Product(Constraint):
    """Texts that satisfy several constraints, also written ``a & b``.

    :param Constraint constraints: at least one.
    """

    def __init__(self, *constraints: Constraint) -> None:
        if not constraints:
            raise ValueError("a Product needs at least one constraint")
        self.constraints = constraints
        self.asks = any(constraint.asks for constraint in constraints)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.constraints))})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ProductStates:
        return ProductStates([constraint.states(vocabulary, tokens) for constraint in self.constraints])


class ProductStates(ConstraintStates):
    """A state of each factor."""

    def __init__(self, parts: list[ConstraintStates]) -> None:
        self._parts = parts
        self.asks = any(part.asks for part in parts)

    def masks(self) -> Tensor:
        first, *others = (part.masks() for part in self._parts)
        for masks in others:
            first = first & masks
        return first

    def may_end(self) -> Tensor:
        first, *others = (part.may_end() for part in self._parts)
        for ends in others:
            first = first & ends
        return first

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for part in self._parts:
            part.advance(tokens, alive)

    def select(self, rows: Tensor) -> ProductStates:
        return ProductStates([part.select(rows) for part in self._parts])

    def accepts(self, row: int, token: int) -> bool:
        return all(part.accepts(row, token) for part in self._parts if part.asks)


class PerStep(Constraint):
    """A constraint on each reasoning step by itself, where others are on all that follows the prompt.

    The delimiter belongs to the step, e.g. ``PerStep(Choices(["yes\\n\\n", "no\\n\\n"]))``; the text may end where the step may.

    :param Constraint constraint: on the text of a step.
    """

    def __init__(self, constraint: Constraint) -> None:
        self.constraint, self.asks = constraint, constraint.asks

    def __repr__(self) -> str:
        return f"PerStep({self.constraint!r})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ConstraintStates:
        return self.constraint.states(vocabulary, tokens[:, :0])
