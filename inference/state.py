"""Permuting and indexing whatever a model threads through a barrier or returns."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

_SCALARS = (bool, int, float, complex, str, bytes, Enum, type(None), torch.dtype, torch.device)


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor [N, *batch, *event]`` with lane ``n`` replaced by lane ``index[n]``.

    :param Tensor index: ``[N, *plates]``; a plate of size 1 in the tensor is spread where the index differs along it.
    """
    ndim = index.dim()
    if index.numel() == index.shape[0]:
        return tensor.index_select(0, index.flatten())
    batch = torch.broadcast_shapes(tensor.shape[:ndim], index.shape)
    event = tensor.shape[ndim:]
    return tensor.expand(*batch, *event).gather(0, index.reshape(*index.shape, *(1 for _ in event)).expand(*batch, *event))


def take_one(tensor: Tensor, index: Tensor) -> Tensor:
    """The lane ``index [1, *plates]`` of ``tensor [N, *batch, *event]``, without the particle dimension."""
    ndim = index.dim()
    batch = torch.broadcast_shapes(tensor.shape[1:ndim], index.shape[1:])
    event = tensor.shape[ndim:]
    where = index.reshape(*index.shape, *(1 for _ in event)).expand(1, *batch, *event)
    return tensor.expand(tensor.shape[0], *batch, *event).gather(0, where)[0]


def reorder(state: Any, index: Tensor, path: str = "state") -> Any:
    """Permute the lanes of a state.

    Tensors by their leading particle dimension, objects by their ``reorder(index)``, containers recursively; Python scalars, ``None`` and
    0-dim tensors are the same for every lane.

    :param Tensor index: ``[N, *plates]`` ancestors.
    :raises TypeError: for a leaf of any other type, naming it.
    :raises ValueError: for a tensor without the particle dimension, naming it.
    """
    if callable(getattr(state, "reorder", None)):
        return state.reorder(index)
    if isinstance(state, Tensor):
        if state.dim() == 0:
            return state
        if state.shape[0] != index.shape[0] or state.dim() < index.dim():
            raise ValueError(
                f"barrier leaf {path} has shape {tuple(state.shape)}; its leading dimensions must be the particles and the model's plates, "
                f"here {tuple(index.shape)}. Keep values that are the same for every lane out of the barrier."
            )
        return take(state, index)
    if isinstance(state, dict):
        return type(state)((key, reorder(value, index, f"{path}[{key!r}]")) for key, value in state.items())
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(reorder(getattr(state, name), index, f"{path}.{name}") for name in state._fields))
    if isinstance(state, list | tuple):
        return type(state)(reorder(value, index, f"{path}[{i}]") for i, value in enumerate(state))
    if isinstance(state, _SCALARS):
        return state
    raise TypeError(
        f"barrier leaf {path} is of type {type(state).__name__}, which the particle filter cannot permute; "
        "pass tensors, containers of them, or objects with a reorder(index) method"
    )


def all_done(state: Any) -> Tensor | None:
    """``[*plates]``: populations whose every lane is done, for states with objects that carry ``done``; ``None`` if nobody tells."""
    if callable(getattr(state, "reorder", None)):
        done = getattr(state, "done", None)
        return done.all(0) if isinstance(done, Tensor) and done.dim() > 0 else None
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    known = [done for done in map(all_done, children) if done is not None]
    return torch.stack(torch.broadcast_tensors(*known)).all(0) if known else None


def lane(value: Any, index: tuple[int, ...]) -> Any:
    """The part of a model's return value that belongs to one lane.

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
        return type(value)((key, lane(item, index)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(lane(getattr(value, name), index) for name in value._fields))
    if isinstance(value, list | tuple):
        return type(value)(lane(item, index) for item in value)
    return value
