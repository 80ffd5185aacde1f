"""One run with an adaptive budget, on one problem."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..cost import CostMeter
from ..errors import SMCFailed, attach_partial
from ..importance import Importance
from ..particles.pytree import particles_done
from ..posterior.adaptive_posterior import AdaptivePosterior
from ..posterior.equivalence_classes import Equivalent
from ..posterior.island_posterior import IslandPosterior
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..posterior.votes import Votes
from ..search.by_answer import answers_at, own_answer
from ..search.two_stage_vote import TwoStageVote
from ..search.votes import BestOfN, SelfConsistency, only_the_best
from ..smc import SMC, TOKENS
from .stopping_rule import Until

Algorithm = SMC | BestOfN | SelfConsistency

_NAMES = {
    Importance: "importance sampling",
    SMC: "SMC",
    BestOfN: "best-of-N",
    TwoStageVote: "two-stage vote",
    SelfConsistency: "self-consistency",
}


@dataclass(frozen=True)
class AdaptiveOptions:
    """The arguments of :class:`Adaptive` that a run needs."""

    algorithm: Algorithm
    until: Until
    max_particles: int
    doubling: bool = False
    answer: Callable[[Any], Hashable] | None = None
    equivalent: Equivalent | None = None
    max_tokens_total: int | None = None
    callback: Callable[[AdaptivePosterior], None] | None = None

    @property
    def name(self) -> str:
        """Of the algorithm inside."""
        return next(name for kind, name in _NAMES.items() if isinstance(self.algorithm, kind))

    @property
    def filters(self) -> bool:
        """Whether a vote is a filter, whose particles share ancestors, and not a particle."""
        return isinstance(self.algorithm, SMC) and not isinstance(self.algorithm, Importance)

    @property
    def scored(self) -> bool:
        """Whether candidates are independent and have rewards."""
        return isinstance(self.algorithm, BestOfN | Importance)

    @property
    def batch(self) -> int:
        """Particles of the first batch."""
        return self.algorithm.options.num_particles * (self.algorithm.islands if isinstance(self.algorithm, SMC) else 1)


class TokensSpent(BaseException):
    """Leaves a batch at a barrier. Not an ``Exception``, which a model may catch."""


class AdaptiveRun:
    """Batches on one problem. Everything that changes meanwhile belongs to it.

    :param AdaptiveOptions options: of the run.
    :param tuple args: of the model.
    :param dict kwargs: of the model.
    :param bool listed: whether the model has a plate for a list, which holds this problem alone.
    :ivar list batches: posteriors of the problem, of the batches that are complete.
    :ivar int drawn: particles so far.
    """

    def __init__(self, options: AdaptiveOptions, args: tuple[Any, ...], kwargs: dict[str, Any], listed: bool) -> None:
        self.options, self.args, self.kwargs, self.listed = options, args, kwargs, listed
        self.batches: list[ParticlePosterior] = []
        self.drawn = 0
        self._votes: list[Votes] = []  # of each batch that they were asked of
        self._unfinished: ParticlePosterior | None = None
        self._failure: SMCFailed | None = None

    def run(self) -> AdaptivePosterior:
        """Batches until the rule is content, or the budget is spent."""
        self.meter, self.began = CostMeter(), time.perf_counter()
        with self.meter:
            try:
                stopped = False
                while not stopped and (size := self.next_size()):
                    stopped = self.draw(size)
                found = self.posterior(stopped)
                if found is None:
                    assert self._failure is not None
                    raise self._failure
                return found
            except BaseException as error:
                inner = getattr(error, "partial_posterior", None)
                self._unfinished = self._unfinished if inner is None else inner
                attach_partial(error, partial(self.posterior, complete=False))
                raise

    def next_size(self) -> int:
        """Particles of the next batch: a batch, or as many as there are; no more than the budget leaves, and whole filters."""
        options, n = self.options, self.options.algorithm.options.num_particles
        if self._tokens_spent():
            return 0
        wanted = max(options.batch, self.drawn) if options.doubling else options.batch
        size = min(wanted, options.max_particles - self.drawn)
        return size - size % n if options.filters else size

    def draw(self, size: int) -> bool:
        """Draw particles, and ask whether to stop."""
        algorithm = self.algorithm_of(size)
        self.drawn += size
        try:
            found = algorithm.run(*self.args, **self.kwargs)
        except TokensSpent as spent:
            self._unfinished = spent.partial_posterior  # type: ignore[attr-defined]
            return False
        except SMCFailed as failure:  # a batch without weight among others: it adds none
            self._failure = failure
            return False
        self.batches += self.of_problem(found)
        posterior = self.posterior()
        assert posterior is not None
        if self.options.callback is not None:
            self.options.callback(posterior)
        return bool(self.options.until(posterior))

    def algorithm_of(self, size: int) -> Algorithm:
        """The algorithm with so many particles."""
        made = copy.copy(self.options.algorithm)
        made.options = replace(made.options, may_die=self.listed)  # a dead problem of a list has a posterior, and the others run on
        if self.options.filters:
            assert isinstance(made, SMC)
            made.islands = size // made.options.num_particles
        else:
            made.options = replace(made.options, num_particles=size)
        if self.options.max_tokens_total is not None:
            made.callback = partial(self._watch, made.callback)
        return made

    def _watch(self, callback: Callable[[ParticlePosterior], None] | None, posterior: ParticlePosterior) -> None:
        """At a barrier: leave the batch where the tokens are spent and there is more to write."""
        if callback is not None:
            callback(posterior)
        if self._tokens_spent():
            done = particles_done(posterior.value)
            if done is None or not bool(done.all()):
                raise TokensSpent

    def _tokens_spent(self) -> bool:
        limit = self.options.max_tokens_total
        return limit is not None and self.meter.totals[TOKENS] >= limit

    def of_problem(self, found: ParticlePosterior) -> list[ParticlePosterior]:
        """A batch's posteriors of the problem alone, one for each filter, without the plate of the list."""
        plates = tuple(found.log_weights.shape[1:])
        if plates != ((1,) if self.listed else ()):
            what = f"the model has independent plates {plates} around all its sites" if plates else "the model has no plate of problems"
            raise ValueError(
                f"{what}: each problem stops alone, and is run alone; with max_plate_nesting=1 give the problems as a list, the model's "
                "first argument, of which the plate has the length"
            )
        parts: list[ParticlePosterior] = list(found.parts) if isinstance(found, IslandPosterior) else [found]
        return [_without_plate(part) for part in parts] if self.listed else parts

    def votes(self, num_batches: int) -> Votes:
        """Of the first batches; answers are read once."""
        self._votes += [self.votes_of(found) for found in self.batches[len(self._votes) : num_batches]]
        cast = self._votes[:num_batches]
        shares = tuple(each for votes in cast for each in votes.shares)
        return Votes(shares, tuple(each for votes in cast for each in votes.log_weights)).pooled(self.options.equivalent)

    def votes_of(self, found: ParticlePosterior) -> Votes:
        """Of a batch: one of each particle, or a single one of a filter."""
        answers = answers_at(found, (0,) * found.particles.nesting, self.options.answer or own_answer, None)
        if not self.options.filters:
            staged = isinstance(self.options.algorithm, TwoStageVote)  # each of its draws is a vote, also where it lost within its group
            log_weights = [0.0] * len(answers) if staged else found.log_weights.tolist()
            return Votes(tuple({given: 1.0} for given in answers), tuple(log_weights))
        shares: dict[Hashable, float] = {}
        for given, weight in zip(answers, found.weights.tolist(), strict=True):
            if weight > 0:
                shares[given] = shares.get(given, 0.0) + weight
        return Votes((shares,), (float(found.log_evidence),))

    def posterior(self, stopped: bool = False, complete: bool = True) -> AdaptivePosterior | None:
        """Of the batches that are complete; else of the particles of the last barrier; ``None`` where there are none."""
        options, batches = self.options, list(self.batches)
        if not batches and self._unfinished is not None:
            batches = self.of_problem(self._unfinished)
        if not batches:
            return None
        log_weights: list[Tensor] = [each.particles.weights.log_weights for each in batches]
        scores = None
        rewards: list[float] = []
        if isinstance(options.algorithm, BestOfN):
            log_weights, scores = only_the_best(batches)
            rewards = scores.exp().flatten().tolist()
        elif isinstance(options.algorithm, TwoStageVote):
            log_weights = options.algorithm.together(batches)
        elif options.scored:
            rewards = [reward for each in batches for reward in each.log_likelihood.exp().tolist()]
        found = AdaptivePosterior(
            batches,
            log_weights,
            votes=partial(self.votes, len(self.batches)),
            rewards=rewards,
            scores=scores,
            algorithm=options.name,
            decisive=isinstance(options.algorithm, BestOfN | SelfConsistency),
            num_drawn=self.drawn,
        )
        found.additive = not isinstance(options.algorithm, TwoStageVote)
        found.stopped, found.complete = stopped, complete and self._unfinished is None
        found.cost = {**self.meter.totals, "seconds": time.perf_counter() - self.began}
        return found


def _without_plate(found: ParticlePosterior) -> ParticlePosterior:
    """The posterior of the only problem of a list."""
    particles = found.particles.of_leftmost(0)
    if isinstance(found, SearchPosterior):
        scores = None if found.scores is None else found.scores[:, 0]
        own: ParticlePosterior = SearchPosterior(
            particles, scores=scores, method=found.method, reason=found.reason, decisive=found.decisive
        )
    else:
        own = ParticlePosterior(particles)
    own.cost, own.complete, own.audit = found.cost, found.complete, found.audit
    return own
