"""What one run holds through every execution of its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class RunScope:
    """Shared by all executions of a model that belong to one run: sweeps, replays, iterations, stages and slices.

    :ivar dict subsamples: indices that plates with ``subsample_size`` drew, once for the run.
    :ivar bool replays: whether the algorithm runs the model again along known values.
    :ivar set checked: kinds of pass in which no random number was drawn outside of sites.
    :ivar bool proposals_checked: whether an execution has come to its end with proposals for sites that it has.
    """

    subsamples: dict[str, Tensor] = field(default_factory=dict)
    replays: bool = False
    checked: set[type] = field(default_factory=set)
    proposals_checked: bool = False


_CURRENT: ContextVar[RunScope | None] = ContextVar("ppl_llm_run_scope", default=None)


def current_scope() -> RunScope:
    """The scope of the run that is under way; without one, a scope that nothing shares."""
    return _CURRENT.get() or RunScope()


@contextmanager
def run_scope(scope: RunScope) -> Iterator[RunScope]:
    """A run of its own."""
    token = _CURRENT.set(scope)
    try:
        yield scope
    finally:
        _CURRENT.reset(token)


@contextmanager
def joined_scope(scope: RunScope | None) -> Iterator[RunScope]:
    """Part of the run that is under way; without one, a run that replays, with the scope given or a new one."""
    active = _CURRENT.get()
    if active is not None:
        yield active
        return
    with run_scope(scope or RunScope(replays=True)) as own:
        yield own


@contextmanager
def inside_model() -> Iterator[None]:
    """A run inside of a model is none of the run that executes the model."""
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)
