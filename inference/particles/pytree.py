"""Permuting and indexing whatever a model threads through a barrier or returns."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, Enum, type(None), torch.dtype, torch.device)
"""Values that are the same for every particle."""


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Particles ``index[k]`` of ``tensor [N, *batch, *event]`` as ``[K, *batch, *event]``.

    :param Tensor index: ``[K, *plates]``; a plate of size 1 in the tensor is spread where the index differs along it.
    """
    ndim = index.dim()
    if index.numel() == index.shape[0]:
        return tensor.index_select(0, index.flatten())
    batch = torch.broadcast_shapes(tensor.shape[1:ndim], index.shape[1:])
    event = tensor.shape[ndim:]
    particles = index.reshape(*index.shape, *(1 for _ in event)).expand(index.shape[0], *batch, *event)
    return tensor.expand(tensor.shape[0], *batch, *event).gather(0, particles)


def view(tensor: Tensor, index: Tensor) -> Tensor:
    """As :func:`take`, for tensors that nobody writes to: what all particles share takes no memory for each."""
    if tensor.shape[0] == 1 or tensor.stride(0) != 0:
        return take(tensor, index)
    batch = torch.broadcast_shapes(tensor.shape[1 : index.dim()], index.shape[1:])
    return tensor[:1].expand(index.shape[0], *batch, *tensor.shape[index.dim() :])


def take_one(tensor: Tensor, index: Tensor) -> Tensor:
    """The particle ``index [1, *plates]`` of ``tensor [N, *batch, *event]``, without the particle dimension."""
    ndim = index.dim()
    batch = torch.broadcast_shapes(tensor.shape[1:ndim], index.shape[1:])
    event = tensor.shape[ndim:]
    where = index.reshape(*index.shape, *(1 for _ in event)).expand(1, *batch, *event)
    return tensor.expand(tensor.shape[0], *batch, *event).gather(0, where)[0]


def reorder(state: Any, index: Tensor, path: str = "state") -> Any:
    """Permute the particles of a state.

    Tensors by their leading particle dimension, objects by their ``reorder(index)``, containers recursively; Python scalars, ``None`` and
    0-dim tensors are the same for every particle.

    :param Tensor index: ``[N, *plates]`` ancestors.
    :raises TypeError: for a leaf of any other type, naming it.
    :raises ValueError: for a tensor without the particle dimension, or a list of as many plain values as there are particles, naming it.
    """
    if callable(getattr(state, "reorder", None)):
        return state.reorder(index)
    if isinstance(state, Tensor):
        if state.dim() == 0:
            return state
        if state.shape[0] != index.shape[0] or state.dim() < index.dim():
            raise ValueError(
                f"barrier leaf {path} has shape {tuple(state.shape)}; its leading dimensions must be the particles and the model's plates, "
                f"here {tuple(index.shape)}. Keep values that are the same for every particle out of the barrier."
            )
        return take(state, index)
    _refuse_ambiguous(state, index, path)
    if isinstance(state, dict):
        return type(state)((key, reorder(value, index, f"{path}[{key!r}]")) for key, value in state.items())
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(reorder(getattr(state, name), index, f"{path}.{name}") for name in state._fields))
    if isinstance(state, list | tuple):
        return type(state)(reorder(value, index, f"{path}[{i}]") for i, value in enumerate(state))
    if isinstance(state, PLAIN):
        return state
    raise TypeError(
        f"barrier leaf {path} is of type {type(state).__name__}, which the particle filter cannot permute; "
        "pass tensors, containers of them, or objects with a reorder(index) method"
    )


def _refuse_ambiguous(state: Any, index: Tensor, path: str) -> None:
    """
    :raises ValueError: for as many plain values as there are particles: one for each of them would not be permuted.
    """
    if not isinstance(state, list | tuple | dict) or len(state) != index.shape[0] or len(state) < 2:
        return
    if isinstance(state, dict):
        if list(state) != list(range(len(state))):
            return
    elif isinstance(state, tuple) and (hasattr(state, "_fields") or any(isinstance(item, Tensor) for item in state)):
        return  # a record of a model's variables: those without dimensions are the same for every particle
    if not all(map(_is_plain, state.values() if isinstance(state, dict) else state)):
        return
    kind = "dictionary keyed 0, 1, .." if isinstance(state, dict) else type(state).__name__
    raise ValueError(
        f"barrier leaf {path} is a {kind} of {len(state)} plain values, as many as there are particles: are they one for each particle? "
        "barrier() would not permute them. Pass a tensor with the particles first, or an object with a reorder(index) method; keep what is "
        "the same for every particle out of the barrier"
    )


def _is_plain(item: Any) -> bool:
    """Plain values and containers of them, tensors without dimensions and objects with a single particle: they are not permuted."""
    if isinstance(item, list | tuple):
        return all(map(_is_plain, item))
    if isinstance(item, dict):
        return all(map(_is_plain, item.values()))
    return isinstance(item, PLAIN) or (isinstance(item, Tensor) and item.dim() == 0) or _single(item)


def particles_done(state: Any) -> Tensor | None:
    """``[N, *plates]``: particles that are done, for states with objects that carry ``done``; ``None`` if no object has it."""
    return _told_by(state, "done")


def particles_finished(state: Any) -> Tensor | None:
    """``[N, *plates]``: those of them that have come to an end, where objects carry ``finished``; others that are done were cut."""
    return _told_by(state, "finished", "done")


def _told_by(state: Any, *names: str) -> Tensor | None:
    """The first of these attributes that an object has; of several objects, what all of them say."""
    if callable(getattr(state, "reorder", None)):
        told = next((getattr(state, name) for name in names if hasattr(state, name)), None)
        return told if isinstance(told, Tensor) and told.dim() > 0 else None
    if not isinstance(state, dict | list | tuple):
        return None
    children = state.values() if isinstance(state, dict) else state
    known = [told for child in children if (told := _told_by(child, *names)) is not None]
    return torch.stack(torch.broadcast_tensors(*known)).all(0) if known else None


def can_be_picked(value: Any) -> bool:
    """Whether one particle can be taken out of a state: an object that only permutes itself is all particles or none."""
    objects: list[Any] = []
    map_objects(value, objects.append)
    return all(hasattr(item, "__len__") and hasattr(item, "__getitem__") for item in objects)


def particle(value: Any, index: tuple[int, ...]) -> Any:
    """The part of a model's return value that belongs to one particle.

    :param tuple index: particle, then plate indices.
    """
    if callable(getattr(value, "reorder", None)):
        for i, size in zip(index, getattr(value, "batch_shape", index), strict=False):
            value = value[i if size > 1 or i < size else 0]
        return value
    if isinstance(value, Tensor):
        for i in index:
            if value.dim() == 0:
                break
            value = value[min(i, value.shape[0] - 1)] if value.shape[0] == 1 else value[i]
        return value
    if isinstance(value, dict):
        return type(value)((key, particle(item, index)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(particle(getattr(value, name), index) for name in value._fields))
    if isinstance(value, list | tuple):
        return type(value)(particle(item, index) for item in value)
    return value


def pick(value: Any, index: Tensor) -> Any:
    """The particle ``index [1, *plates]`` of each population of what a model returned, without the particle dimension.

    As lenient as :func:`particle`: what has no particles is returned as it is.
    """

    def of_object(item: Any) -> Any:
        return item if _single(item) else item.reorder(index.expand(len(item), *index.shape[1:]))[0]

    return map_leaves(value, of_object, lambda tensor: take_one(tensor, index) if tensor.dim() >= index.dim() else tensor)


def permute(value: Any, index: Tensor) -> Any:
    """What a model returned with particle ``n`` replaced by particle ``index[n]``, as lenient as :func:`particle`.

    :param Tensor index: ``[N, *plates]``.
    """

    def of_object(item: Any) -> Any:
        return item if _single(item) else item.reorder(index)

    return map_leaves(value, of_object, lambda tensor: take(tensor, index) if tensor.dim() >= index.dim() else tensor)


def _single(item: Any) -> bool:
    return getattr(item, "batch_shape", None) == ()


def map_leaves(
    value: Any, of_object: Callable[[Any], Any], of_tensor: Callable[[Tensor], Any], of_other: Callable[[Any], Any] | None = None
) -> Any:
    """Every object that permutes itself, every tensor, and where it is said all else mapped, through containers."""
    if callable(getattr(value, "reorder", None)):
        return of_object(value)
    if isinstance(value, Tensor):
        return of_tensor(value)
    # It calls itself: an inner function that did would refer to itself, a circle that keeps what the functions given refer to in memory.
    how = of_object, of_tensor, of_other
    if isinstance(value, dict):
        return type(value)((key, map_leaves(item, *how)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(getattr(value, name), *how) for name in value._fields))
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(item, *how) for item in value)
    return value if of_other is None else of_other(value)


def concatenate(values: list[Any]) -> Any:
    """What several runs returned as one value with the particles of all.

    :raises TypeError: for an object with particles but without ``concatenate(others)``.
    """
    first = values[0]
    if callable(getattr(first, "reorder", None)):
        if not callable(getattr(first, "concatenate", None)):
            raise TypeError(f"values of type {type(first).__name__} cannot be joined; give the class a concatenate(others) method")
        return first.concatenate(values[1:])
    if isinstance(first, Tensor):
        return torch.cat(values) if first.dim() > 0 else first
    if isinstance(first, dict):
        return type(first)((key, concatenate([value[key] for value in values])) for key in first)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(concatenate([getattr(value, name) for value in values]) for name in first._fields))
    if isinstance(first, list | tuple):
        return type(first)(concatenate(list(items)) for items in zip(*values, strict=True))
    return first


def select_plate(value: Any, dim: int, i: int) -> Any:
    """Index ``i`` of the batch dimension ``dim`` (counted from the particles, which are 0) of what a model returned."""

    def of_object(item: Any) -> Any:
        return item.select_plate(dim, i) if len(item.batch_shape) > dim else item

    def of_tensor(tensor: Tensor) -> Tensor:
        return tensor.select(dim, i if tensor.shape[dim] > 1 else 0) if tensor.dim() > dim else tensor

    return map_leaves(value, of_object, of_tensor)


def map_objects(value: Any, fn: Callable[[Any], Any]) -> Any:
    """The value with ``fn`` of each object that permutes itself by ``reorder(index)``, in order; all else stays as it is."""
    return map_leaves(value, fn, lambda tensor: tensor)
