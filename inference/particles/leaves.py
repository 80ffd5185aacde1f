"""Two values of a model, compared part by part."""

from __future__ import annotations

import types
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .pytree import PLAIN, map_leaves

_LEAVES = (Tensor, *PLAIN)
_NOT_LOOKED_INTO = (type, types.ModuleType, torch.nn.Module, torch.Generator)


class Differs(Exception):
    """Two values are not the same.

    :ivar str path: of the first part that differs, e.g. ``value['total'][1]``.
    """

    def __init__(self, path: str, first: Any, second: Any) -> None:
        super().__init__(path)
        self.path, self.first, self.second = path, shown(first), shown(second)


class Comparison:
    """Numbers are compared up to a tolerance, other plain values exactly. Looked into are containers, arrays, what an object gives in
    ``compared()`` or else its attributes, and what a function has in its closure and its defaults. A single object that both values hold is
    the same; what is neither, such as an iterator, is passed over.

    :ivar int num_leaves: numbers, tensors and other plain values that were compared.
    """

    def __init__(self, atol: float, rtol: float) -> None:
        self.atol, self.rtol = atol, rtol
        self.num_leaves = 0
        self._met: set[tuple[int, int]] = set()

    def compare(self, first: Any, second: Any, path: str) -> None:
        """
        :raises Differs: naming the first part that differs.
        """
        first, second = as_leaf(first), as_leaf(second)
        if isinstance(first, _LEAVES) or isinstance(second, _LEAVES):
            self.num_leaves += 1
            if not equal(first, second, self.atol, self.rtol):
                raise Differs(path, first, second)
            return
        if (id(first), id(second)) in self._met:  # a circle, or a part that stands in several places
            return
        self._met.add((id(first), id(second)))
        if first is second and not isinstance(first, dict | list | tuple | set | frozenset | deque):
            return
        parts, others = self.parts(first), self.parts(second)
        if type(first) is not type(second):
            raise Differs(path, first, second)
        if parts is None or others is None:
            return
        if parts.keys() != others.keys():
            raise Differs(path, first, second)
        for key, part in parts.items():
            self.compare(part, others[key], f"{path}{key}")

    def parts(self, value: Any) -> dict[str, Any] | None:
        """What a value is made of, by its place there; ``None`` if it is not looked into."""
        return parts_of(value)


def parts_of(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return {f"[{key!r}]" if isinstance(key, PLAIN) else f"[key {i}]": item for i, (key, item) in enumerate(value.items())}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {f".{name}": getattr(value, name) for name in value._fields}
    if isinstance(value, list | tuple | deque):
        return {f"[{i}]": item for i, item in enumerate(value)}
    if isinstance(value, set | frozenset):  # in the order of what they hold, if that tells it
        told = all(isinstance(item, PLAIN) or (isinstance(item, tuple) and all(isinstance(x, PLAIN) for x in item)) for item in value)
        return {f"{{{i}}}": item for i, item in enumerate(sorted(value, key=repr))} if told else None
    if isinstance(value, _NOT_LOOKED_INTO):
        return None
    if callable(getattr(value, "compared", None)):
        return {"": value.compared()}
    if isinstance(value, partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"": value.__self__}
    if isinstance(value, types.FunctionType):
        return _held(value)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    attributes = {f".{name}": getattr(value, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(value, name)}
    return {**attributes, **{f".{name}": item for name, item in getattr(value, "__dict__", {}).items()}}


def _held(function: types.FunctionType) -> dict[str, Any]:
    """What a function brings along."""
    held: dict[str, Any] = {"(defaults)": [function.__defaults__, function.__kwdefaults__]}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[f"({name})"] = cell.cell_contents
        except ValueError:  # nothing yet
            continue
    return held


def as_leaf(value: Any) -> Any:
    """Arrays of numbers as tensors, other arrays as lists."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.array(value))
        except TypeError:
            return value.tolist()
    return value


def equal(a: Any, b: Any, atol: float, rtol: float) -> bool:
    """Whether two leaves are the same; a value for all particles may come back as one for each of them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dim() == 0 or b.dim() == 0 or a.dim() == b.dim()) and a.shape != b.shape:
            sizes = zip(a.shape, b.shape, strict=False)
            if all(n == m or 1 in (n, m) for n, m in sizes):
                a, b = torch.broadcast_tensors(a, b.to(a.device))
        if a.shape != b.shape:
            return False
        if a.is_floating_point() or b.is_floating_point():
            return torch.allclose(a.to(torch.float64), b.to(a.device, torch.float64), rtol, atol, equal_nan=True)
        if a.is_complex() or b.is_complex():
            return torch.allclose(a.to(torch.complex128), b.to(a.device, torch.complex128), rtol, atol, equal_nan=True)
        return torch.equal(a, b.to(a.device))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= atol + rtol * abs(b) or a == b or (a != a and b != b)
    return type(a) is type(b) and bool(a == b)


def shown(value: Any) -> str:
    """In a few words, for a message."""
    text = str(value.tolist() if isinstance(value, Tensor) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def copied(value: Any) -> Any:
    """The value with tensors, arrays and containers of its own; objects that permute themselves are values that nobody changes."""
    if isinstance(value, Tensor):
        return value.clone()
    return map_leaves(value, lambda item: item, Tensor.clone, lambda item: item.copy() if isinstance(item, np.ndarray | set) else item)
