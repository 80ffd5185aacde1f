"""What Pyro's own tools expect of a posterior: traces, chains and importance weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import pyro.distributions as dist
from pyro.infer.abstract_infer import TracePosterior
from pyro.infer.importance import LogWeightsMixin
from pyro.poutine.trace_struct import Trace
from torch import Tensor

if TYPE_CHECKING:
    from .particle_posterior import ParticlePosterior


class PyroTraces(TracePosterior, LogWeightsMixin):
    """Pyro's ``TracePosterior`` and ``LogWeightsMixin`` over weighted particles."""

    num_chains = 1

    @property
    def _posterior(self) -> ParticlePosterior:
        return cast("ParticlePosterior", self)

    def get_log_normalizer(self) -> Tensor:
        return self._posterior.log_evidence

    @cached_property
    def exec_traces(self) -> list[Trace]:
        """One Pyro trace per particle, built on first use."""
        return [trace for trace, _ in self._traces()]

    @property
    def chain_ids(self) -> list[int]:
        return [0] * self._posterior.num_particles

    @property
    def _idx_by_chain(self) -> list[list[int]]:
        return [list(range(self._posterior.num_particles))]

    @property
    def _categorical(self) -> dist.Categorical:
        return dist.Categorical(logits=self._posterior.log_weights)

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, Tensor]]:
        posterior = self._posterior
        if posterior._plate_dims:
            raise ValueError(
                "Pyro's EmpiricalMarginal and traces hold one population; this posterior has one for each of "
                f"{tuple(posterior.log_weights.shape[1:])} plate indices. Use marginal(fn), or sites with weights."
            )
        for n in range(posterior.num_particles):
            trace = Trace()
            for name, value in posterior.sites.items():
                fn = dist.Delta(value[n], event_dim=value[n].dim()).mask(False)
                trace.add_node(name, name=name, type="sample", fn=fn, value=value[n], is_observed=False, infer={}, cond_indep_stack=())
            index = (n, *itertools.repeat(0, posterior._weights.log_weights.dim() - 1))
            trace.add_node("_RETURN", name="_RETURN", type="return", value=posterior.lane(index))
            yield trace, posterior.log_weights[n]

    def run(self, *args: Any, **kwargs: Any) -> ParticlePosterior:
        raise TypeError("a posterior is a result; run the algorithm again: SMC(model, ...).run(...)")
