"""Classes of values that count as the same, e.g. answers written differently."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

Equivalent = Callable[[Hashable, Hashable], bool]
"""Whether two values count as the same."""


def representatives(values: Iterable[Hashable], equivalent: Equivalent) -> dict[Hashable, Hashable]:
    """The representative of each distinct value.

    Values are taken shortest first, those of one length in alphabetical order. Each joins the first class whose *representative* it is
    equivalent to, or founds a class and represents it. So the classes depend on the set of values only, neither on their order nor on any
    weights, and ``a ~ b``, ``b ~ c`` never puts ``a`` and ``c`` together unless one of them represents the other: no chains. ``None`` stays
    alone.

    :param equivalent: need not be transitive; called once at most for each value and representative, never for equal values.
    """
    chosen: dict[Hashable, Hashable] = {}
    founders: list[Hashable] = []
    for value in sorted({value for value in values if value is not None}, key=lambda value: (len(str(value)), str(value))):
        founder = next((known for known in founders if equivalent(known, value)), None)
        if founder is None:
            founders.append(value)
        chosen[value] = value if founder is None else founder
    return chosen | {None: None}


def alike(values: Sequence[Hashable], equivalent: Equivalent | None) -> list[Hashable]:
    """The values, each as its representative; as they are where nothing says which count as the same."""
    if equivalent is None:
        return list(values)
    chosen = representatives(values, equivalent)
    return [chosen[value] for value in values]
