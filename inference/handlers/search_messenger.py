"""The handler of searches: a particle filter that selects particles by score instead of resampling them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..particles.history import History, ResamplingRecord, Site
from ..particles.pytree import particles_finished, reorder, take
from ..particles.site_util import is_deterministic
from ..particles.snapshot import Snapshot
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from .candidate_messenger import CandidateMessenger
from .filter_options import FilterOptions
from .replay_messenger import KnownValue


class Candidates(NamedTuple):
    """Particles as they were before the barrier number ``barriers``; every tensor is ``[C, *plates]``.

    :ivar Tensor particles: where each candidate lived then.
    :ivar Tensor eligible: candidates that the search may return.
    """

    barriers: Tensor
    particles: Tensor
    eligible: Tensor
    log_weights: Tensor
    scores: Tensor
    log_likelihood: Tensor
    lengths: Tensor

    @classmethod
    def joined(cls, parts: list[Candidates]) -> Candidates:
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def take(self, index: Tensor) -> Candidates:
        return Candidates(*(tensor.gather(0, index) for tensor in self))


class SearchMessenger(CandidateMessenger):
    """Propose, reweight, record, select: weights travel with their particles and are never reset, so they are the scores of whole prefixes.

    :param FilterOptions options: of the sweep; what concerns resampling has no effect.
    :param str method: name of the search, for its posterior.
    :ivar look: from the state of a barrier, N and the number of plates to log-weights ``[N, *plates]`` by which unfinished particles are
        selected in place of their own; ``None`` without a look ahead.
    """

    bridges: ClassVar[bool] = False

    cut: Tensor
    """``[N, *plates]``: particles that are done without having come to an end, at the barrier where :meth:`select` is called."""

    look: Callable[[Snapshot, int, int], Tensor] | None = None

    def __init__(self, options: FilterOptions, method: str) -> None:
        super().__init__(options)
        self.method = method

    def __enter__(self) -> SearchMessenger:
        self._met_site = False  # since the last barrier
        self._prefix: Tensor | None = None  # [N, *plates] a number for each prefix, the same for equal ones
        super().__enter__()
        return self

    @abstractmethod
    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """Record candidates, and say which particles continue.

        :param Tensor log_weights: ``[N, *plates]``.
        :param Tensor done: ``[N, *plates]``.
        :returns: ancestors ``[N, *plates]`` and the log-weights that they get.
        """

    @abstractmethod
    def finalists(self) -> Candidates:
        """The ``N`` candidates of each population that the search returns, once the model has ended."""

    def finished(self) -> Candidates | None:
        """``N`` finished candidates of each population so far; ``None`` if one has none."""
        return None

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        self._met_site |= not (site_is_subsample(msg) or is_deterministic(msg))

    def resample(self, state: Any, ess: Tensor) -> Any:
        system, done = self.system, self._done(state)
        own = system.weights.log_weights
        ahead = own if self.look is None else torch.where(done, own, self._look_ahead(state, ess))
        ancestors, log_weights = self.select(ahead, done)
        if self.look is not None:  # a look decides who continues, and is no score
            log_weights = torch.where(log_weights > -torch.inf, own.gather(0, ancestors), -torch.inf)
        if self._prefix is not None:
            self._prefix = self._prefix.gather(0, ancestors)
        moved = (ancestors != system.numbers).any(0)
        system.record_barrier(state, ess)
        system.resample(Weights(log_weights), ancestors, moved)
        self._met_site = False
        return reorder(state, ancestors) if bool(moved.any()) else state

    def _look_ahead(self, state: Any, ess: Tensor) -> Tensor:
        assert self.look is not None
        system = self.system
        snapshot = system.snapshot(state)
        here = ResamplingRecord(ess, system.numbers, torch.zeros_like(ess, dtype=torch.bool))
        there = snapshot._replace(all_records=[*snapshot.records, here], num_records=snapshot.num_records + 1)
        return self.look(there, self.options.num_particles, self.options.max_plate_nesting).expand_as(system.numbers)

    def first_of_equals(self, like: Tensor, groups: Tensor | None = None) -> Tensor:
        """``[N, *plates]``: for each particle, the first whose latent sites all have the same values. To be asked at each barrier.

        :param Tensor groups: ``[N, *plates]``: particles of different groups are never equal.
        """
        system = self.system
        before = torch.zeros_like(system.numbers) if groups is None else groups
        before = before if self._prefix is None else self._prefix
        segment = [site.value for site in system.sites if site.value is not None and site.barriers == len(system.records)]
        values = [value.reshape(*value.shape[: like.dim()], -1) for value in segment]

        def equal_to(i: int) -> Tensor:
            same = before == before[i]
            for value in values:
                equal = (value == value[i]).all(-1)
                for dim in range(1, like.dim()):
                    if like.shape[dim] < equal.shape[dim]:  # one population holds what the plate does
                        equal = equal.all(dim, keepdim=True)
                same = same & equal
            return same

        self._prefix = torch.stack([equal_to(i).to(torch.uint8).argmax(0) for i in range(len(before))])
        return self._prefix

    def end(self, value: Any) -> Candidates:
        """The search's result, after the model has returned ``value``. Nothing is selected after the last step."""
        if self._met_site or not self.system.records:
            self.select(self.system.weights.log_weights, self._done(value))
        return self.finalists()

    def _done(self, state: Any) -> Tensor:
        """Particles that are done, ``[N, *plates]``; ``self.cut`` are those of them that have not come to an end."""
        done, finished = self.system.population_done(state), self.system.of_populations(particles_finished(state))
        like = self.system.weights.log_weights
        nobody = torch.zeros_like(like, dtype=torch.bool)
        found = nobody if done is None else done.to(like.device).expand_as(like)
        self.cut = nobody if finished is None else found & ~finished.to(like.device)
        return found

    def candidates(self, eligible: Tensor, particles: Tensor | None = None, log_weights: Tensor | None = None) -> Candidates:
        """The present particles."""
        system = self.system
        scores = system.weights.log_weights
        particles = system.numbers if particles is None else particles
        return Candidates(
            barriers=torch.full_like(particles, len(system.records)),
            particles=particles,
            eligible=eligible,
            log_weights=scores if log_weights is None else log_weights,
            scores=scores.gather(0, particles),
            log_likelihood=system.log_likelihood.expand_as(scores).gather(0, particles),
            lengths=system.lengths.expand_as(scores).gather(0, particles),
        )

    def each_once(self, parts: list[Candidates]) -> Candidates:
        """The ``N`` eligible ones among records of all particles, where each particle of each population is eligible in one of them."""
        pool, own = Candidates.joined(parts), torch.cat([self.system.numbers] * len(parts))
        by_particle = torch.where(pool.eligible, own, self.options.num_particles).argsort(dim=0, stable=True)
        return pool.take(by_particle[: self.options.num_particles])

    def lineages(self, chosen: Candidates) -> list[KnownValue]:
        """For each number of barriers, the particle ``[N, *plates]`` that each candidate descends from, and whether it still took part."""
        lineages = []
        now = chosen.particles
        for barriers in range(len(self.system.records), -1, -1):
            took_part = chosen.barriers >= barriers
            lineages.append(KnownValue(now, took_part))
            if barriers > 0:
                now = torch.where(took_part, self.system.records[barriers - 1].ancestors.gather(0, now), now)
        return lineages[::-1]

    def known_values(self, chosen: Candidates) -> dict[str, KnownValue]:
        """The latent sites of candidates, each up to the barrier before which it lived."""
        found = {}
        lineages = self.lineages(chosen)
        for site in self.system.sites:
            if site.value is not None:
                particles, known = lineages[site.barriers]
                found[site.name] = KnownValue(take(site.value, particles), known)
        return found

    def known_log_probs(self, chosen: Candidates) -> dict[str, Tensor]:
        """The log-probabilities of their sites, 0 after that barrier; where they were recorded."""
        found = {}
        lineages = self.lineages(chosen)
        for site in self.system.sites:
            if site.log_prob is not None:
                particles, known = lineages[site.barriers]
                found[site.name] = torch.where(known, take(site.log_prob, particles), 0.0)
        return found

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        return SearchPosterior.of(found, scores=found.particles.weights.log_weights, method=self.method)

    def result(self, chosen: Candidates, replayed: ParticlePosterior) -> SearchPosterior:
        """The posterior of the finalists, whose sites and values come from a replay."""
        records = tuple(self.system.records)
        particles = replayed.particles._replace(
            weights=Weights(chosen.log_weights),
            sites=tuple(Site(site.name, site.value, None, len(records)) for site in replayed.particles.sites),
            records=records,
            lengths=chosen.lengths,
            log_likelihood=chosen.log_likelihood,
        )
        found = SearchPosterior(particles, scores=chosen.scores, method=self.method)
        found.history = History(tuple(self.system.sites), records, chosen.barriers, chosen.particles)
        return found
