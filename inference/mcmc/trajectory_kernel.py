"""What Markov chains over trajectories share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ..cost import CostMeter
from ..errors import SMCFailed, attach_partial
from ..handlers.filter_options import FilterOptions
from ..handlers.particle_messenger import ParticleMessenger
from ..handlers.proposal_messenger import Proposals, check_given_values, check_proposals
from ..handlers.sweep import sweep
from ..handlers.temper_messenger import TemperMessenger
from ..particles.run_scope import RunScope, joined_scope, run_scope
from ..particles.trajectory import ChainRecord, Trajectory
from ..posterior.chain_posterior import CHAIN, ChainPosterior
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_count


class _FirstDraw(ParticleMessenger):
    """One execution, which may be impossible: a chain leaves it at once."""

    def check_alive(self) -> None:
        with suppress(SMCFailed):
            super().check_alive()


class TrajectoryKernel(MCMCKernel, ABC):
    """A Markov kernel over executions of a model that leaves its posterior invariant; also a kernel of ``pyro.infer.MCMC``.

    The kernel itself never changes while it runs: what a chain knows of its past travels with its state (:class:`ChainRecord`), so that one
    kernel may run any number of chains at a time. Only as a kernel of ``pyro.infer.MCMC``, whose protocol has no other place, it holds the
    arguments and the record of that one run.

    A subclass implements :meth:`sweep`, which draws the next trajectory, independently for each plate index, so that a plate of
    replicas (:func:`~ppl_llm.inference.mcmc.replicate.replicate`) makes any kernel move a population in one batch.

    :param model: as for :class:`SMC`.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    """

    transforms: dict[str, Any] = {}  # noqa: RUF012 - what Pyro's MCMC looks for
    extended_state: ClassVar[bool] = False
    """Whether a state is more than one trajectory; such a kernel cannot move the particles or replicas of another algorithm."""
    reversible: bool = True
    """Whether the kernel has detailed balance, by which it may be restricted to some executions."""
    scores_its_state: ClassVar[bool] = True
    """Whether an iteration asks the proposals for the density of the present trajectory."""

    @checked
    def __init__(self, model: Callable[..., Any], *, proposals: Proposals | None = None, max_plate_nesting: int = 0) -> None:
        if proposals is not None:
            check_proposals(proposals)
            if self.scores_its_state:
                check_given_values(proposals)
        check_count("max_plate_nesting", max_plate_nesting, 0)
        self.model = model
        self.proposals = proposals
        self.max_plate_nesting = max_plate_nesting
        self._initial_params: Trajectory | None = None  # of Pyro's next run, or of the present one
        self._running = False
        self._chain = ChainRecord()  # of Pyro's present or last run

    @abstractmethod
    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """Weighted trajectories of which one drawn by weight is the next state, given the present one.

        :param Trajectory reference: the present state, with plates of every level of ``max_plate_nesting``.
        """

    @torch.no_grad()
    def step(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        """One iteration: the weighted trajectories to keep, and the next state."""
        with joined_scope(state.chain.scope) as scope:
            posterior, moved = self.transition(state, *args, **kwargs)
        moved.chain = replace(moved.chain, scope=scope)
        return posterior, moved

    @torch.no_grad()
    def start(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A first state, see :meth:`first_state`."""
        with joined_scope(None) as scope:
            state = self.first_state(*args, **kwargs)
        state.chain = replace(state.chain, scope=scope)
        return state

    def transition(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        """What :meth:`step` does, in the scope of the chain's run."""
        posterior = self.sweep(state, *args, **kwargs)
        moved = posterior.draw(dead=True)
        moved.chain = state.chain.after(self.acceptance_probability(posterior))
        return posterior, moved

    def acceptance_probability(self, posterior: ParticlePosterior) -> Tensor | None:
        """``[*plates]``: with which probability an iteration moved; ``None`` for a kernel that accepts always."""
        return None

    def first_state(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A draw from the proposals, by default from the prior, perhaps of posterior density zero."""
        messenger = _FirstDraw(FilterOptions(1, self.max_plate_nesting, ess_threshold=0.0, proposals=self.proposals))
        return sweep(TemperMessenger(likelihood=0.0)(self.model), messenger, args, kwargs).draw(dead=True)

    def run(
        self,
        num_samples: int,
        *args: Any,
        warmup_steps: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
        **kwargs: Any,
    ) -> ChainPosterior:
        """A chain of ``num_samples`` iterations over ``model(*args, **kwargs)``.

        :param int warmup_steps: iterations before those that are kept.
        :param callback: called with the :class:`ParticlePosterior` of each iteration, those of the warm-up included.
        :returns: all trajectories of all kept iterations, each iteration with the same total weight (Rao-Blackwellised). An exception in
            the middle, Ctrl-C included, carries those so far as ``partial_posterior``; in the warm-up, its last iteration.
        :raises ValueError: if ``num_samples`` is less than 1.
        """
        check_count("num_samples", num_samples)
        check_count("warmup_steps", warmup_steps, 0)
        kept: list[ParticlePosterior] = []
        warm: list[ParticlePosterior] = []  # the last iteration
        start = time.perf_counter()
        with CostMeter() as meter, run_scope(RunScope(replays=True)):
            try:
                state = self.start(*args, **kwargs)
                state.chain = replace(state.chain, warmup_steps=warmup_steps)
                for i in range(warmup_steps + num_samples):
                    posterior, state = self.step(state, *args, **kwargs)
                    posterior.no_evidence = CHAIN
                    warm = [posterior]
                    if i >= warmup_steps:
                        kept.append(posterior)
                    if callback is not None:
                        callback(posterior)
            except BaseException as error:
                cost = {**meter.totals, "seconds": time.perf_counter() - start}
                attach_partial(error, lambda: self.pooled(kept or warm, state.chain, cost) if warm else None)
                raise
        return self.pooled(kept, state.chain, {**meter.totals, "seconds": time.perf_counter() - start})

    def pooled(self, kept: list[ParticlePosterior], chain: ChainRecord, cost: dict[str, float]) -> ChainPosterior:
        """The posterior of a chain, given those of its iterations."""
        return ChainPosterior(kept, cost, acceptance_rate=chain.acceptance_rate)

    # Pyro's MCMCKernel --------------------------------------------------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin a run: from ``initial_params`` if they were set since the last run, else from a first state that it draws."""
        given = None if self._running else self._initial_params
        start = self.start(*args, **kwargs) if given is None else given
        self._args, self._kwargs = args, kwargs
        self._chain = ChainRecord(warmup_steps, scope=start.chain.scope)
        self._initial_params, self._running = start, True

    @property
    def initial_params(self) -> Trajectory | None:
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._initial_params, self._running = params if isinstance(params, Trajectory) else Trajectory(params), False

    def sample(self, params: Trajectory) -> Trajectory:
        params.chain = self._chain
        moved = self.step(params, *self._args, **self._kwargs)[1]
        self._chain = moved.chain
        return moved

    def logging(self) -> dict[str, str]:
        rate = self._chain.acceptance_rate
        return {} if rate is None else {"acc. rate": f"{float(rate.mean()):.3f}"}

    def diagnostics(self) -> dict[str, Any]:
        """Of Pyro's run; that of :meth:`run` has its own, see :meth:`ChainPosterior.diagnostics`."""
        rate = self._chain.acceptance_rate
        return {} if rate is None else {"acceptance rate": float(rate.mean())}

    def cleanup(self) -> None:
        self._args, self._kwargs = (), {}
        self._initial_params, self._running = None, False
