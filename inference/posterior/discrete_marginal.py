"""A distribution over hashable values, e.g. answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from .equivalence_classes import Equivalent, representatives


class DiscreteMarginal:
    """Probabilities of hashable values, most probable first; ties keep the order of first appearance. Values of zero weight are left out.

    :param pairs: (value, weight) pairs; the weights of equal values are added, then all are normalised.
    """

    def __init__(self, pairs: Iterable[tuple[Hashable, float]]) -> None:
        mass: dict[Hashable, float] = {}
        for value, weight in pairs:
            if weight > 0:
                mass[value] = mass.get(value, 0.0) + float(weight)
        total = sum(mass.values())
        if not total > 0:
            raise ValueError(f"the weights must have a positive sum, got {total}")
        self.probs: dict[Any, float] = {value: m / total for value, m in sorted(mass.items(), key=lambda item: -item[1])}
        self._equivalent: Equivalent | None = None
        self._representative: dict[Hashable, Hashable] = {}

    def pooled(self, equivalent: Equivalent) -> DiscreteMarginal:
        """The distribution over classes of values that count as the same, each under its representative (:func:`representatives`).

        :meth:`prob` of any member of a class, and of a value equivalent to its representative, is that of the class.
        """
        chosen = representatives(self.probs, equivalent)
        marginal = DiscreteMarginal((chosen[value], p) for value, p in self.probs.items())
        marginal._equivalent, marginal._representative = equivalent, chosen
        return marginal

    @property
    def mode(self) -> Any:
        """The most probable value."""
        return next(iter(self.probs))

    def prob(self, value: Hashable) -> float:
        """Probability of a value; 0.0 if no particle has it."""
        value = self._representative.get(value, value)
        if value not in self.probs and value is not None and self._equivalent is not None:
            value = next((known for known in self.probs if known is not None and self._equivalent(known, value)), value)
        return self.probs.get(value, 0.0)

    def expectation(self, fn: Callable[[Any], float]) -> float:
        """Mean of ``fn`` under the marginal."""
        return sum(p * fn(value) for value, p in self.probs.items())

    def __getitem__(self, value: Hashable) -> float:
        return self.prob(value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.probs)

    def __len__(self) -> int:
        return len(self.probs)

    def __repr__(self) -> str:
        shown = ", ".join(f"{value!r}: {p:.3f}" for value, p in list(self.probs.items())[:5])
        more = f", ... {len(self) - 5} more" if len(self) > 5 else ""
        return f"DiscreteMarginal({{{shown}{more}}})"


def pool(marginals: Any, equivalent: Equivalent | None) -> Any:
    """:meth:`DiscreteMarginal.pooled` of a marginal, or of nested lists of them; with ``None``, what was given."""
    if equivalent is None:
        return marginals
    return [pool(each, equivalent) for each in marginals] if isinstance(marginals, list) else marginals.pooled(equivalent)
