"""The particles of a run and what is known of them, as it builds up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .history import ResamplingRecord, Site, score_of
from .leaves import copied
from .plates import Frame, dependent_dims, per_population, plates_of, subsampled_plates
from .pytree import particles_done
from .site_util import is_deterministic
from .snapshot import Snapshot, lengths_of
from .trajectory import Trajectory
from .weights import Weights


class ParticleSystem:
    """Weights, sites and barriers so far, and the plates that hold their own populations. Each run makes one.

    :param int num_particles: N.
    :param int max_plate_nesting: number of plates of the model.
    :param bool record_log_probs: keep every site's log-probability.
    :ivar Weights weights: ``[N, *plates]``.
    :ivar Tensor log_likelihood: ``[N, *plates]`` of the observed sites, not tempered.
    :ivar Tensor log_bridged: ``[N, *plates]`` of the latent sites whose power grows along a bridge, at their full power.
    :ivar tuple shares: of that power at the first barriers.
    :ivar float share: that the weights have now; 1 but at a barrier.
    :ivar Tensor uneven_lengths: ``[N, *plates]`` segments that each particle took part in; ``None`` while all took part in all.
    :ivar frozenset plates: plates that every site so far lies in; ``None`` before the first site.
    :ivar list records: what happened at each barrier.
    :ivar list unchecked: sites and the weights after them, since it was last asked whether all populations are alive.
    :ivar Snapshot last: of the last barrier.
    :ivar int segment: index of the present segment between barriers, or of the last one; segments count where they have a latent site.
    :ivar Tensor done: ``[N, *plates]`` particles that were done at the last barrier; ``None`` if its state does not tell.
    """

    def __init__(self, num_particles: int, max_plate_nesting: int, record_log_probs: bool = False) -> None:
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self.record_log_probs = record_log_probs
        self.plates: frozenset[Frame] | None = None
        self._start(torch.zeros(num_particles, *(1,) * max_plate_nesting, dtype=torch.float64))
        self.shares: tuple[float, ...] = ()
        self.share = 1.0
        self.uneven_lengths: Tensor | None = None
        self.sites: list[Site] = []
        self.records: list[ResamplingRecord] = []
        self.unchecked: list[tuple[str, Weights]] = []
        self.last: Snapshot | None = None
        self.segment = self._counted = -1
        self.done: Tensor | None = None
        self._in_segment = False
        self._stack: tuple[Any, ...] = ()  # plates around the last site
        self._plates_met: list[tuple[str, int | None]] = []  # the same, by name and dimension
        self._subsampled: set[Frame] = set()

    def restore(self, snapshot: Snapshot) -> None:
        """A system that has met no site becomes what it was at a barrier, or at the end of the model."""
        self.weights, self.log_likelihood, self.uneven_lengths = snapshot.weights, snapshot.log_likelihood, snapshot.uneven_lengths
        self.log_bridged, self.share = snapshot.log_bridged, snapshot.share
        self.plates = snapshot.plates
        self.sites, self.records = list(snapshot.sites), list(snapshot.records)
        self.segment, self._counted = snapshot.segment, snapshot.counted
        self._number_particles()
        self.end_segment(snapshot.value)
        self.bridge_to(1.0)

    # plates -------------------------------------------------------------------------------------------------------------------------

    def _start(self, zeros: Tensor) -> None:
        self.weights, self.log_likelihood, self.log_bridged = Weights(zeros), zeros, zeros
        self._number_particles()

    def _number_particles(self) -> None:
        """Each particle's number ``[N, *plates]``, and ``[*plates]`` no population: what a barrier that does not resample records."""
        self._dependent = dependent_dims(self.plates or frozenset(), self.max_plate_nesting)  # batch dimensions within a population
        like = self.weights.log_weights
        self._unmoved = torch.zeros(like.shape[1:], dtype=torch.bool, device=like.device)
        self.numbers = torch.arange(self.num_particles, device=like.device).view(-1, *(1,) * self.max_plate_nesting).expand_as(like)

    def meet(self, msg: Any) -> None:
        """Record the plates and the segment of a site, before its density is added."""
        if msg["cond_indep_stack"] is not self._stack:  # the particle plate gives the same tuple where it is alone
            self._meet_plates(msg)
        if self._counted < self.segment:
            self._count_segment()

    def _meet_plates(self, msg: Any) -> None:
        self._stack = msg["cond_indep_stack"]
        met = [(frame.name, frame.dim) for frame in self._stack]
        if met == self._plates_met:
            return
        self._plates_met = met
        plates = plates_of(msg, self.max_plate_nesting)
        self._subsampled |= subsampled_plates(msg)
        if self.plates is None:
            self.plates = plates
            sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"]}
            shape = [self.num_particles, *(sizes.get(dim, 1) for dim in range(-self.max_plate_nesting, 0))]
            self._start(torch.zeros(shape, device=msg["value"].device, dtype=torch.float64))
            return
        lost = self.plates - plates
        if lost and self.records:
            raise ValueError(
                f"site {msg['name']!r} lies outside plate {next(iter(lost)).name!r}, over which the filter has already resampled "
                "independently; draw what the plate's elements share before the first barrier, or move the site into the plate"
            )
        if lost:
            # What the elements share makes them one population: its weight is the product over the plate.
            dims = [frame.dim for frame in lost]
            self.weights = Weights(self.weights.log_weights.sum(dims, keepdim=True))
            self.log_likelihood = self.log_likelihood.sum(dims, keepdim=True)
            self.log_bridged = self.log_bridged.sum(dims, keepdim=True)
            self.plates -= lost
            self._number_particles()

    # weights ------------------------------------------------------------------------------------------------------------------------

    def add(self, name: str, log_increment: Tensor, observed: Tensor | None = None) -> None:
        """``log w <- log w + log_increment`` at a site.

        :param Tensor log_increment: ``[N, *batch]`` in the model's plates; a population gets the sum over what it holds.
        :param Tensor observed: ``[N, *batch]`` log-probability of an observed site, not tempered.
        """
        n, nesting = self.num_particles, self.max_plate_nesting
        increment = per_population(log_increment, name, n, nesting, self._dependent)
        self.weights = self.weights.add(increment)
        self.unchecked.append((name, self.weights))
        if observed is not None:
            plain = increment if observed is log_increment else per_population(observed, name, n, nesting, self._dependent)
            self.log_likelihood = self.log_likelihood + plain

    def add_bridged(self, name: str, log_density: Tensor, shares: tuple[float, ...]) -> None:
        """A latent site whose power grows along a bridge.

        :param Tensor log_density: ``[N, *batch]`` at its full power, which the weights have already.
        :param tuple shares: of the power at the first barriers.
        """
        found = per_population(log_density, name, self.num_particles, self.max_plate_nesting, self._dependent)
        self.log_bridged, self.shares = self.log_bridged + found, shares

    @property
    def share_here(self) -> float:
        """Of the power at the barrier that comes next, or is being gone through and not recorded yet."""
        number = len(self.records)
        return self.shares[number] if number < len(self.shares) else 1.0

    def bridge_to(self, share: float) -> None:
        """``w <- w p(x)^(alpha' - alpha)`` of the sites on a bridge.

        :param float share: of their power in the target after.
        """
        if share != self.share:
            change = torch.where(self.log_bridged == -torch.inf, 0.0, (share - self.share) * self.log_bridged)
            self.weights, self.share = self.weights.add(change), share

    def resample(self, weights: Weights, ancestors: Tensor, resampled: Tensor) -> None:
        """At the barrier that was recorded last, every particle becomes what its ancestor was.

        :param Weights weights: after the barrier, ``[N, *plates]``.
        :param Tensor ancestors: ``[N, *plates]``.
        :param Tensor resampled: ``[*plates]``, populations that were resampled.
        """
        self.weights = weights
        self.log_likelihood = self.log_likelihood.gather(0, ancestors)
        self.log_bridged = self.log_bridged.gather(0, ancestors)
        if self.uneven_lengths is not None:
            self.uneven_lengths = self.uneven_lengths.expand_as(ancestors).gather(0, ancestors)
        self.records[-1] = self.records[-1]._replace(ancestors=ancestors, resampled=resampled)

    def move(self, moved: Trajectory, sites: Iterable[Site], rate: Tensor) -> None:
        """At the barrier that was recorded last, every particle becomes another one of the same weight.

        :param Trajectory moved: ``[N, *plates]`` executions up to this barrier.
        :param sites: theirs; what was known of a site of the same name is history.
        :param Tensor rate: ``[*plates]`` fraction of the moves that changed a particle.
        """
        assert moved.log_likelihood is not None and moved.length is not None and moved.log_bridged is not None
        self.log_likelihood, self.uneven_lengths = moved.log_likelihood, moved.length
        self.log_bridged = moved.log_bridged / self.share  # at the present power
        self.sites.extend(site._replace(barriers=len(self.records)) for site in sites)
        self.records[-1] = self.records[-1]._replace(move_rate=rate)

    # segments and sites -------------------------------------------------------------------------------------------------------------

    def begin_segment(self) -> None:
        """A latent site begins a segment unless one has begun."""
        if not self._in_segment:
            self._in_segment, self.segment = True, self.segment + 1

    def _count_segment(self) -> None:
        """A segment counts for the particles that are not done when its first latent site is met."""
        if self.done is not None:
            self.uneven_lengths = self.lengths + (~self.done).long()
        elif self.uneven_lengths is not None:
            self.uneven_lengths = self.uneven_lengths + 1
        self._counted = self.segment

    def end_segment(self, state: Any) -> None:
        """A barrier ends the segment and gives ``state``."""
        self.done = self.population_done(state)
        self._in_segment = False
        self.last = self.snapshot(copied(state))  # the model may change its own in place

    @property
    def lengths(self) -> Tensor:
        """``[N, *plates]``: segments that each particle took part in."""
        return lengths_of(self.uneven_lengths, self._counted, self.log_likelihood)

    def record(self, msg: Any, log_prob: Tensor | None) -> None:
        """Keep a site's value with the number of barriers before it."""
        value, note = None, is_deterministic(msg)
        if note or not msg["is_observed"]:
            value = msg["value"].clone()  # what the model holds it may change in place
            value = self.note(msg, value) if note else value if value.shape == msg["fn"].shape() else value.expand(msg["fn"].shape())
        score = score_of(msg["fn"], log_prob) if msg["is_observed"] else None
        if value is not None or score is not None or self.record_log_probs:
            self.sites.append(Site(msg["name"], value, log_prob if self.record_log_probs else None, len(self.records), score))

    def note(self, msg: Any, value: Tensor) -> Tensor:
        """The value of a deterministic site as ``[N, *batch, *event]``: its leading dimensions are the particles and plates as far as they
        can be; plates that it lacks are 1.

        ``pyro.deterministic`` takes all dimensions of a value for its event, unless it is told ``event_dim``.
        """
        fn, batch = msg["fn"], msg["fn"].batch_shape
        if len(fn.event_shape) < value.dim() or not value.dim() or value.shape[0] != self.num_particles:
            return value.expand(fn.shape())
        pairs = zip(value.shape, batch, strict=False)
        own = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] in (1, pair[1]), pairs))
        event = value.shape[own:]
        return value.reshape(*value.shape[:own], *(1,) * (len(batch) - own), *event).expand(*batch, *event)

    def record_barrier(self, state: Any, ess: Tensor) -> None:
        """Record a barrier before anything happens at it: every particle is its own ancestor."""
        like, done = self.weights.log_weights, self.population_done(state)
        done = None if done is None else done.expand_as(like)
        self.records.append(ResamplingRecord(ess, self.numbers, self._unmoved, like, self.log_likelihood, done))

    def population_done(self, state: Any) -> Tensor | None:
        """``[N, *plates]``: particles of which all that one population holds is done; ``None`` if the state does not tell."""
        return self.of_populations(particles_done(state))

    def of_populations(self, done: Tensor | None) -> Tensor | None:
        """``[N, *plates]`` of ``[N, *batch]``: particles of which all that one population holds is done."""
        if done is None:
            return None
        done = done.clone().reshape(done.shape + (1,) * (1 + self.max_plate_nesting - done.dim()))
        for dim in self._dependent:
            done = done.all(dim, keepdim=True)
        return done

    def snapshot(self, value: Any) -> Snapshot:
        """The particles as they are now, with the state or return value that belongs to them.

        :raises ValueError: if there was no site, or a plate with ``subsample_size`` holds populations of their own.
        """
        if self.plates is None:
            raise ValueError("the model has no sample site; there is nothing to infer")
        if self._subsampled and self._subsampled & self.plates:
            name = min(frame.name for frame in self._subsampled & self.plates)
            raise ValueError(
                f"plate {name!r} has a subsample_size, but its elements share nothing, so that each is a population of its own and its "
                "likelihood would count several times: leave out subsample_size, or sample what the elements share before the plate"
            )
        sites, records = self.sites, self.records
        return Snapshot(
            self.weights,
            self.log_likelihood,
            self.uneven_lengths,
            self.plates,
            sites,
            len(sites),
            records,
            len(records),
            self.segment,
            self._counted,
            value,
            self.log_bridged,
            self.share,
        )
