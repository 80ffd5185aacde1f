"""What a model returned, leaf by leaf, for comparison."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pytree import map_leaves, plain_items


class Leaf(NamedTuple):
    """A tensor or a plain value.

    :ivar str path: where it is, e.g. ``value['total'][1]``.
    :ivar other: what it may be as well: plain values in a list are in the particles' order, or the same for all of them.
    """

    path: str
    value: Any
    other: Any = None

    def equals(self, found: Leaf, atol: float, rtol: float) -> bool:
        """Whether another leaf is the same, numbers up to a tolerance."""
        return _equal(self.value, found.value, atol, rtol) or (self.other is not None and _equal(self.other, found.value, atol, rtol))

    @property
    def shown(self) -> str:
        text = str(self.value.tolist() if isinstance(self.value, Tensor) else self.value)
        return text if len(text) <= 80 else f"{text[:77]}..."


def _equal(a: Any, b: Any, atol: float, rtol: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dim() == 0 or b.dim() == 0 or a.dim() == b.dim():  # a value for all particles may come back as one for each of them
            sizes = zip(a.shape, b.shape, strict=False)
            if all(n == m or 1 in (n, m) for n, m in sizes):
                a, b = torch.broadcast_tensors(a, b.to(a.device))
        if a.shape != b.shape:
            return False
        if a.is_floating_point() or b.is_floating_point():
            return torch.allclose(a.to(torch.float64), b.to(a.device, torch.float64), rtol, atol, equal_nan=True)
        return torch.equal(a, b.to(a.device))
    if isinstance(a, float) and isinstance(b, float):
        return _equal(torch.tensor(a), torch.tensor(b), atol, rtol)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y, atol, rtol) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def leaves(value: Any, places: Tensor | None, path: str = "value") -> list[Leaf]:
    """The leaves of a value in order. An object with ``compared()`` has those of what that gives, another one with ``reorder(index)`` those
    of its attributes; what is neither, nor a tensor, container or plain value, is passed over.

    :param Tensor places: ``[N, *plates]``: where the particles of a list of plain values may have moved to; ``None`` to take it as it is.
    """
    if isinstance(value, Tensor):
        return [Leaf(path, value)]
    if callable(getattr(value, "compared", None)):
        return leaves(value.compared(), None, path)
    if callable(getattr(value, "reorder", None)):
        return (
            leaves({name: each for name, each in vars(value).items() if isinstance(each, Tensor)}, None, path)
            if hasattr(value, "__dict__")
            else []
        )
    if isinstance(value, list | tuple | dict):
        items = plain_items(value)
        if items is not None:
            return [Leaf(path, items if places is None else _moved(items, places), items)]
        if isinstance(value, dict):
            return [leaf for key, item in value.items() for leaf in leaves(item, places, f"{path}[{key!r}]")]
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, places, f"{path}[{i}]")]
    return [Leaf(path, value)] if isinstance(value, bool | int | float | complex | str | bytes | None) else []


def _moved(items: list[Any], places: Tensor) -> list[Any]:
    """Lists ``[N, *plates]`` with the particle ``places[n]`` in place n of each population; others as they are."""
    if places.dim() > 1 and places.numel() == len(places):
        places = places.flatten()
    if not _nested(items, places.shape):
        return items
    if places.dim() == 1:
        return [items[n] for n in places.tolist()]
    columns = [_moved([item[i] for item in items], places[:, i]) for i in range(places.shape[1])]
    return [list(row) for row in zip(*columns, strict=True)]


def _nested(items: Any, shape: torch.Size) -> bool:
    """Whether lists are nested with these lengths."""
    if not shape:
        return True
    return isinstance(items, list | tuple) and len(items) == shape[0] and all(_nested(item, shape[1:]) for item in items)


def copied(value: Any) -> Any:
    """The value with tensors of its own; objects that permute themselves are values that nobody changes."""
    return value.clone() if isinstance(value, Tensor) else map_leaves(value, lambda item: item, Tensor.clone)
