"""What Pyro's own tools expect of a posterior: traces, chains and importance weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import pyro.distributions as dist
from pyro.infer.abstract_infer import TracePosterior
from pyro.infer.importance import LogWeightsMixin
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..particles.weighted_particles import WeightedParticles


class Weighted(Protocol):
    """The part of a posterior that :class:`PyroTraces` reads."""

    particles: WeightedParticles

    @property
    def num_particles(self) -> int: ...

    @property
    def log_weights(self) -> Tensor: ...

    @property
    def log_evidence(self) -> Tensor: ...

    @property
    def sites(self) -> dict[str, Tensor]: ...

    def particle(self, index: tuple[int, ...]) -> Any: ...

    def require_alive(self) -> None: ...

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, Tensor]]: ...


class PyroTraces(TracePosterior, LogWeightsMixin):
    """Pyro's ``TracePosterior`` and ``LogWeightsMixin`` over weighted particles."""

    num_chains = 1

    def get_log_normalizer(self: Weighted) -> Tensor:
        return self.log_evidence

    @cached_property
    def exec_traces(self: Weighted) -> list[Trace]:
        """One Pyro trace per particle, built on first use."""
        return [trace for trace, _ in self._traces()]

    @property
    def chain_ids(self: Weighted) -> list[int]:
        return [0] * self.num_particles

    @property
    def _idx_by_chain(self: Weighted) -> list[list[int]]:
        return [list(range(self.num_particles))]

    @property
    def _categorical(self: Weighted) -> dist.Categorical:
        self.require_alive()
        return dist.Categorical(logits=self.log_weights)

    def _traces(self: Weighted, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, Tensor]]:
        if self.particles.plate_dims:
            raise ValueError(
                "Pyro's EmpiricalMarginal and traces hold one population; this posterior has one for each of "
                f"{tuple(self.log_weights.shape[1:])} plate indices. Use marginal(fn), or sites with weights."
            )
        for n in range(self.num_particles):
            trace = Trace()
            for name, value in self.sites.items():
                fn = dist.Delta(value[n], event_dim=value[n].dim()).mask(False)
                trace.add_node(name, name=name, type="sample", fn=fn, value=value[n], is_observed=False, infer={}, cond_indep_stack=())
            index = (n, *itertools.repeat(0, self.particles.nesting))
            trace.add_node("_RETURN", name="_RETURN", type="return", value=self.particle(index))
            yield trace, self.log_weights[n]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a posterior is a result; run the algorithm again: SMC(model, ...).run(...)")
