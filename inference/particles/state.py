"""What an object may offer that a model threads through ``barrier`` or returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class State(Protocol):
    """An object with a value for each particle, such as a :class:`~ppl_llm.Context`.

    Tensors, and lists, tuples and dictionaries of states, need no class: their leading dimensions are the particles and the model's
    plates. A class of its own must have :meth:`reorder`, by which it is recognised, and :attr:`batch_shape` with ``[index]``; the rest of
    this protocol and of :class:`StateWithCache` is looked for where it is needed.

    A state is a value: no method changes it.
    """

    @property
    def batch_shape(self) -> torch.Size:
        """``[N, *plates]``; a plate of size 1 is the same for all of its elements, ``()`` is one particle or all alike."""
        ...

    def reorder(self, index: Tensor) -> Any:
        """The state in which particle ``n`` is what particle ``index[n]`` was.

        :param Tensor index: ``[N, *plates]``, for each plate index on its own.
        """
        ...

    def __getitem__(self, i: int) -> Any:
        """Index ``i`` of the leftmost batch dimension, without that dimension."""
        ...

    def __len__(self) -> int:
        """Size of the leftmost batch dimension."""
        ...


@runtime_checkable
class StateThatEnds(State, Protocol):
    """A state that tells which particles have finished: these are not resampled once all have, and their number of steps is known.

    Where some of them were cut before they had come to an end, a mask ``finished`` of the others has searches rank them below these.
    """

    @property
    def done(self) -> Tensor:
        """``[N, *plates]`` bool."""
        ...


@runtime_checkable
class PooledState(State, Protocol):
    """A state that pooled posteriors (islands, chains, problems taken apart) can join and take apart."""

    def concatenate(self, others: Sequence[Any]) -> Any:
        """The state with the particles of all, in order."""
        ...

    def select_plate(self, dim: int, i: int) -> Any:
        """Index ``i`` of the batch dimension ``dim`` (the particles are 0), without that dimension."""
        ...


@runtime_checkable
class StateWithEmbedding(State, Protocol):
    """A state that tells in which direction a particle goes, for :class:`DORA`."""

    def embedding(self) -> Tensor:
        """``[N, *plates, D]``."""
        ...


@runtime_checkable
class ComparedState(State, Protocol):
    """A state that tells an audit what to compare; of another one, all attributes are."""

    def compared(self) -> Any:
        """Tensors and plain values, in containers, that two equal states have in common."""
        ...


@runtime_checkable
class StateWithCache(State, Protocol):
    """A state with a cache worth saving: its values are the same without, but work is done again."""

    def cache_state(self) -> Any:
        """The cache as plain values and tensors, for a file."""
        ...

    def restore_cache(self, cache: Any) -> Any:
        """The state with a cache that was saved."""
        ...


@runtime_checkable
class StateWithAnswers(State, Protocol):
    """A state of which a single particle says what it answers."""

    def answers(self) -> Any:
        """Of one particle (``batch_shape`` is ``()``): a hashable answer, ``None`` without one."""
        ...

    def describe(self, value: Tensor) -> str | None:
        """The value ``[*event]`` of a latent site in words, for the viewer; ``None`` for one that is not its own."""
        ...
