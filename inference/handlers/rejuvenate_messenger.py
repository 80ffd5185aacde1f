"""A particle filter that moves its particles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..particles.history import Site
from ..particles.pytree import can_be_picked, particles_done
from ..particles.run_scope import current_scope, run_scope
from ..particles.trajectory import Trajectory
from ..posterior.particle_posterior import ParticlePosterior
from .filter_options import FilterOptions
from .particle_messenger import ParticleMessenger
from .replay_messenger import KnownValue, ReplayMessenger
from .sweep import sweep
from .until_messenger import until

Program = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A model and the arguments that it is called with."""


class Mover(Protocol):
    """A reversible Markov kernel over executions of a model, a population for each particle."""

    def step(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        """The next state of each population."""
        ...


class RejuvenateMessenger(ParticleMessenger):
    """A particle filter that moves its particles behind barriers (Gilks & Berzuini, 2001): copies of one particle part again.

    At barrier t, after resampling, each move draws ``x_{1:t}^n ~ K_t(x_{1:t}^n, .)`` with a kernel that leaves the filter's target there
    invariant, that of ``until(model, t)``; weights stay as they are, and so does what they estimate.

    Whether a particle is moved must not depend on the others: filters that move where the effective sample size was low are biased, since
    K is invariant on average over all particles, not over those of such populations. Hence the moves are made at every barrier, or every
    so many. A finished execution stays, and an unfinished one stays unfinished (a reversible kernel restricted to these executions is
    reversible there); so nothing is missed where a model ends with its last particle.

    :param FilterOptions options: of the filter.
    :param kernel: from the beginning of the model to a kernel that moves N populations of it.
    :param int moves: of each particle each time.
    :param int every: barriers from one time to the next.
    :param tuple program: the model and its arguments; it must be a function of the values of its sites alone.
    """

    def __init__(self, options: FilterOptions, *, kernel: Callable[[Any], Mover], moves: int, every: int, program: Program) -> None:
        super().__init__(options)
        self.kernel, self.moves, self.every, self.program = kernel, moves, every, program

    def __enter__(self) -> RejuvenateMessenger:
        self.scope = current_scope()
        super().__enter__()
        return self

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        if len(self.system.records) % self.every:
            return state
        staying = self.staying(state)
        return state if bool(staying.all()) else self.move(state, staying)

    def staying(self, state: Any) -> Tensor:
        """``[N, *plates]``: finished particles, and those without weight, of which it makes no difference."""
        lost, done = self.system.weights.log_weights == -torch.inf, self.system.population_done(state)
        return lost if done is None else lost | done.to(lost.device)

    def beginning(self) -> Callable[..., Any]:
        """The model whose target is the filter's at the present barrier."""
        return until(self.program[0], len(self.system.records))

    def move(self, state: Any, staying: Tensor) -> Any:
        """``x ~ K(x, .)``; the state that the barrier returns."""
        _, args, kwargs = self.program
        particles, rate = self.trajectories(state, staying), torch.zeros(staying.shape[1:], dtype=torch.float64, device=staying.device)
        model, picked = self.beginning(), can_be_picked(state)
        kernel = self.kernel(model if picked else lambda *args, **kwargs: particles_done(model(*args, **kwargs)))
        with run_scope(self.scope):
            for _ in range(self.moves):
                before, particles = particles, self.kept(particles, kernel.step(particles, *args, **kwargs)[1], picked)
                rate = rate + particles.differs(before).to(rate).mean(0) / self.moves
            sites: Iterable[Site] = known_sites(particles)
            if self.options.record_log_probs or not picked:
                replay = self.replay(particles)
                again = sweep(model, replay, args, kwargs).particles
                sites = again.sites if self.options.record_log_probs else sites
        self.system.move(particles, sites, rate)
        return particles.value if picked else again.value

    def trajectories(self, state: Any, staying: Tensor) -> Trajectory:
        """The particles ``[N, *plates]`` as they are, each the state of a chain."""
        system = self.system
        now = ParticlePosterior.from_snapshot(system.snapshot(state))
        value = state if can_be_picked(state) else particles_done(state)
        found = Trajectory(now.sites, length=now.particles.lengths, log_likelihood=now.particles.log_likelihood, value=value)
        found.scores, found.log_bridged = now.site_scores, system.log_bridged * system.share
        found.staying, found.unfinished = staying, True
        return found

    def kept(self, before: Trajectory, moved: Trajectory, picked: bool) -> Trajectory:
        """Moved where a particle does not stay, and has not finished by it.

        :param bool picked: whether values are states; else they tell which particles are done.
        """
        assert before.staying is not None
        moved.complete(before)
        done = self.system.of_populations(particles_done(moved.value) if picked else moved.value)
        stays = before.staying if done is None else before.staying | done.to(before.staying.device)
        if bool((moved.differs(before) & stays).any()):
            numbers = self.system.numbers
            both = Trajectory.concatenate(before, moved)
            moved = both.reorder(torch.where(stays, numbers, numbers + len(numbers)))
        moved.staying, moved.unfinished = before.staying, True
        return moved

    def replay(self, particles: Trajectory) -> ReplayMessenger:
        """One more pass along the particles: for their log-probabilities, or for a state whose particles cannot be picked."""
        everywhere = torch.ones_like(self.system.weights.log_weights, dtype=torch.bool)
        known = {name: KnownValue(value, everywhere.to(value.device)) for name, value in particles.items()}
        kind = ScoredReplay if self.options.record_log_probs else ReplayMessenger
        return kind(self.system.num_particles, self.system.max_plate_nesting, known)


class ScoredReplay(ReplayMessenger):
    """Every particle follows its own trajectory, and every site is scored."""

    def __init__(self, num_particles: int, max_plate_nesting: int, values: dict[str, KnownValue]) -> None:
        super().__init__(num_particles, max_plate_nesting, values)
        self.options = replace(self.options, record_log_probs=True)

    def _needs_log_prob(self, msg: Any) -> bool:
        return ParticleMessenger._needs_log_prob(self, msg)


def known_sites(particles: Trajectory) -> list[Site]:
    """The sites of trajectories, with the scores of those that were observed."""
    values = [Site(name, value, None, 0) for name, value in particles.items()]
    return values + [Site(name, None, None, 0, score) for name, score in particles.scores.items()]
