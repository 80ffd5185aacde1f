"""A distribution over hashable values, e.g. answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from torch import Tensor

from .equivalence_classes import Equivalent, representatives


class DiscreteMarginal:
    """Probabilities of hashable values, most probable first; ties, of twelve digits, keep the order of first appearance. Values of zero
    weight are left out.

    Of a population whose particles all have weight zero it is empty: ``len(marginal) == 0``, every value has probability 0.

    :param pairs: (value, weight) pairs; the weights of equal values are added, then all are normalised. A tensor without dimensions counts
        as the number that it holds.
    :raises TypeError: for a value that is not compared by what it holds, such as a larger tensor.
    """

    def __init__(self, pairs: Iterable[tuple[Hashable, float]]) -> None:
        weights: dict[Hashable, list[float]] = {}
        for value, weight in pairs:
            if weight > 0:
                weights.setdefault(_by_value(value), []).append(float(weight))
        mass = {value: math.fsum(own) for value, own in weights.items()}
        total = math.fsum(mass.values())
        # Rounding must not decide: the same votes in another order are a tie, and so are two of three and four of six.
        ordered = sorted(mass.items(), key=lambda item: -float(f"{item[1]:.12g}"))
        self.probs: dict[Any, float] = {value: m / total for value, m in ordered}
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
        """The most probable value.

        :raises ValueError: if the distribution is empty.
        """
        if not self.probs:
            raise ValueError("an empty distribution has no mode: every particle of the population has weight zero (see posterior.dead)")
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


def _by_value(value: Any) -> Any:
    """The value as one that equals others by what it holds.

    :raises TypeError: for a value that equals only itself: each particle would count as a value of its own.
    """
    if isinstance(value, tuple):
        items = [_by_value(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, frozenset):
        return frozenset(map(_by_value, value))
    if isinstance(value, Tensor):
        if value.dim() > 0:
            raise TypeError(
                f"a value of the marginal is a tensor of shape {tuple(value.shape)}, and tensors equal only themselves; "
                "return plain values, e.g. tuple(value.tolist())"
            )
        return _by_value(value.item())
    if isinstance(value, float) and value != value:
        return math.nan  # which equals itself in a dictionary if it is the same object
    kind: Any = type(value)
    if kind.__hash__ is None:
        raise TypeError(
            f"a value of the marginal is a {kind.__name__}, which cannot be counted; return a plain value, e.g. a tuple or a text"
        )
    if value is not None and not callable(value) and (kind.__hash__, kind.__eq__) == (object.__hash__, object.__eq__):
        raise TypeError(
            f"a value of the marginal is a {kind.__name__}, which equals only itself; return what tells values apart, e.g. its text"
        )
    return value


def pool(marginals: Any, equivalent: Equivalent | None) -> Any:
    """:meth:`DiscreteMarginal.pooled` of a marginal, or of nested lists of them; with ``None``, what was given."""
    if equivalent is None:
        return marginals
    return [pool(each, equivalent) for each in marginals] if isinstance(marginals, list) else marginals.pooled(equivalent)
