"""The particles of a sweep and what is known of them, as it builds up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..posterior.particle_posterior import ParticlePosterior
from .history import Site, Step, score_of
from .plates import Frame, dependent_dims, per_population, plates_of
from .pytree import lanes_done
from .site_util import is_deterministic
from .snapshot import Snapshot, lengths_of
from .weights import Weights


class ParticleSystem:
    """Weights, sites and steps so far, and the plates that hold populations of their own.

    :param int num_particles: N.
    :param int max_plate_nesting: number of plates of the model.
    :param bool record_log_probs: keep every site's log-probability.
    """

    def __init__(self, num_particles: int, max_plate_nesting: int, record_log_probs: bool) -> None:
        super().__init__()
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self.record_log_probs = record_log_probs
        self.clear()

    def clear(self) -> None:
        """Before the first site."""
        self.weights: Weights | None = None
        self.log_likelihood: Tensor | None = None  # [N, *plates] of the observed sites, not tempered
        self.uneven_lengths: Tensor | None = None  # [N, *plates] segments that each lane took part in; None while all took part in all
        self.plates: frozenset[Frame] | None = None  # plates that every site so far lies in
        self.sites: list[Site] = []
        self.steps: list[Step] = []
        self.unchecked: list[tuple[str, Weights]] = []  # weights after each factor since the last check
        self.last: Snapshot | None = None  # of the last barrier
        self._partial: ParticlePosterior | None = None
        self.segment = self._counted = -1  # segments between barriers, counted where they have a latent site
        self._in_segment = False
        self._done: Tensor | None = None  # [N, *plates] lanes that were done at the last barrier
        self._stack: tuple[Any, ...] = ()  # plates around the last site
        self._plates_met: list[tuple[str, int | None]] = []  # the same, by name and dimension

    def restore(self, snapshot: Snapshot) -> None:
        """As it was at a barrier, or at the end of the model."""
        self.clear()
        self.weights, self.log_likelihood, self.uneven_lengths = snapshot.weights, snapshot.log_likelihood, snapshot.uneven_lengths
        self.plates = snapshot.plates
        self.sites, self.steps = list(snapshot.sites), list(snapshot.steps)
        self.segment, self._counted = snapshot.segment, snapshot.counted
        self._number_lanes()
        self.close_segment(snapshot.value)

    # plates -------------------------------------------------------------------------------------------------------------------------

    def _per_population(self, log_prob: Tensor, msg: Any) -> Tensor:
        return per_population(log_prob, msg["name"], self.num_particles, self.max_plate_nesting, self._dependent_dims())

    def _dependent_dims(self) -> list[int]:
        assert self.plates is not None
        return dependent_dims(self.plates, self.max_plate_nesting) if self.max_plate_nesting else []

    def _number_lanes(self) -> None:
        """Each lane's number ``[N, *plates]``, and ``[*plates]`` no population: what a step that does not resample notes."""
        assert self.weights is not None
        like = self.weights.log_weights
        self._unmoved = torch.zeros(like.shape[1:], dtype=torch.bool, device=like.device)
        self._lanes = torch.arange(self.num_particles, device=like.device).view(-1, *(1,) * self.max_plate_nesting).expand_as(like)

    def _meet_plates(self, msg: Any) -> None:
        if msg["cond_indep_stack"] is self._stack:  # the particle plate gives the same tuple where it is alone
            return
        self._stack = msg["cond_indep_stack"]
        met = [(frame.name, frame.dim) for frame in self._stack]
        if met == self._plates_met:
            return
        self._plates_met = met
        plates = plates_of(msg, self.max_plate_nesting)
        if self.plates is None:
            self.plates = plates
            sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"]}
            shape = [self.num_particles, *(sizes.get(dim, 1) for dim in range(-self.max_plate_nesting, 0))]
            zeros = torch.zeros(shape, device=msg["value"].device, dtype=torch.float64)
            self.weights, self.log_likelihood = Weights(zeros), zeros
            self._number_lanes()
            return
        lost = self.plates - plates
        if lost and self.steps:
            raise ValueError(
                f"site {msg['name']!r} lies outside plate {next(iter(lost)).name!r}, over which the filter has already resampled "
                "independently; draw what the plate's elements share before the first barrier, or move the site into the plate"
            )
        if lost:
            # What the elements share makes them one population: its weight is the product over the plate.
            assert self.weights is not None and self.log_likelihood is not None
            dims = [frame.dim for frame in lost]
            self.weights = Weights(self.weights.log_weights.sum(dims, keepdim=True))
            self.log_likelihood = self.log_likelihood.sum(dims, keepdim=True)
            self._number_lanes()
            self.plates -= lost

    # segments and sites -------------------------------------------------------------------------------------------------------------

    def open_segment(self) -> None:
        """A latent site begins a segment unless one is open."""
        if not self._in_segment:
            self._in_segment, self.segment = True, self.segment + 1

    def count_segment(self) -> None:
        """A segment counts for the lanes that are not done when its first latent site is met."""
        if self._counted < self.segment:
            if self._done is not None:
                self.uneven_lengths = self.lengths + (~self._done).long()
            elif self.uneven_lengths is not None:
                self.uneven_lengths = self.uneven_lengths + 1
            self._counted = self.segment

    @property
    def lengths(self) -> Tensor:
        """``[N, *plates]``: segments that each lane took part in."""
        assert self.log_likelihood is not None
        return lengths_of(self.uneven_lengths, self._counted, self.log_likelihood)

    def close_segment(self, state: Any) -> None:
        """A barrier ends the segment and gives ``state``."""
        self._done = self.population_done(state)
        self._in_segment = False
        self.last, self._partial = self.snapshot(state), None

    def record(self, msg: Any, log_prob: Tensor | None) -> None:
        """Note a site's value with the number of barriers before it."""
        value = None
        if not msg["is_observed"] or is_deterministic(msg):
            shape = msg["fn"].shape()
            value = msg["value"] if msg["value"].shape == shape else msg["value"].expand(shape)
        score = score_of(msg["fn"], log_prob) if msg["is_observed"] else None
        if value is not None or score is not None or self.record_log_probs:
            self.sites.append(Site(msg["name"], value, log_prob if self.record_log_probs else None, len(self.steps), score))

    def permute(self, ancestors: Tensor) -> None:
        """What is known of each lane becomes what is known of its ancestor ``[N, *plates]``, the weights excepted."""
        assert self.log_likelihood is not None
        self.log_likelihood = self.log_likelihood.gather(0, ancestors)
        if self.uneven_lengths is not None:
            self.uneven_lengths = self.uneven_lengths.expand_as(ancestors).gather(0, ancestors)

    def step_before(self, state: Any, ess: Tensor) -> Step:
        """A barrier at which nothing has happened yet: every lane is its own ancestor."""
        assert self.weights is not None
        like, done = self.weights.log_weights, self.population_done(state)
        done = None if done is None else done.expand_as(like)
        return Step(ess, self._lanes, self._unmoved, like, self.log_likelihood, done)

    def population_done(self, state: Any) -> Tensor | None:
        """``[N, *plates]``: lanes of which all that one population holds is done; ``None`` if the state does not tell."""
        done = lanes_done(state)
        if done is None:
            return None
        assert self.weights is not None
        dependent = self._dependent_dims()
        done = done.reshape(done.shape + (1,) * (self.weights.log_weights.dim() - done.dim()))
        for dim in dependent:
            done = done.all(dim, keepdim=True)
        return done

    # results ------------------------------------------------------------------------------------------------------------------------

    def snapshot(self, value: Any) -> Snapshot:
        """The particle system as it is now, with the state or return value that belongs to it."""
        if self.weights is None or self.plates is None:
            raise ValueError("the model has no sample site; there is nothing to infer")
        assert self.log_likelihood is not None
        sites, steps = self.sites, self.steps
        return Snapshot(
            self.weights,
            self.log_likelihood,
            self.uneven_lengths,
            self.plates,
            sites,
            len(sites),
            steps,
            len(steps),
            self.segment,
            self._counted,
            value,
        )

    def posterior(self, value: Any) -> ParticlePosterior:
        """The weighted particles as they are now."""
        return self.snapshot(value).posterior()

    @property
    def partial(self) -> ParticlePosterior | None:
        """The posterior of the last barrier; built on demand."""
        if self._partial is None and self.last is not None:
            self._partial = self.last.posterior()
        return self._partial
