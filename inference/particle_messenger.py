"""The handler that turns an ordinary Pyro model with barriers into a particle filter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .factors import is_deterministic, is_one, raise_for_dead, scaled
from .particle_posterior import ParticlePosterior, Site, Step
from .populations import Frame, dependent_dims, per_population, plates_of
from .resampling import Resampler
from .selection import Selection
from .snapshot import Snapshot
from .state import lanes_done, reorder
from .weights import Weights


class ParticleMessenger(Messenger):
    """Propose, reweight, record, resample: Algorithm 10.1 of Chopin & Papaspiliopoulos (2020), one pass over the model.

    Enter it outside the particle plate ``pyro.plate("_particles", N, dim=-1 - max_plate_nesting)``. Latent sites are proposed from the
    prior, which cancels structurally, unless a :class:`~ppl_llm.inference.ProposalMessenger` inside proposed their value. Weights keep
    the plates that every site lies in: these populations are independent and are resampled each on its own.

    :param int num_particles: N.
    :param int max_plate_nesting: number of plates of the model.
    :param resampler: a resampling scheme.
    :param float ess_threshold: resample at a barrier where ESS <= threshold * N; 1 is always, 0 never.
    :param bool resample_finished: also resample populations whose every lane is done.
    :param bool record_log_probs: keep every site's log-probability, for the audit.
    :param selection: weights to resample in proportion to, instead of the particles' own; see :class:`Selection`.
    :param callback: called with the posterior so far after each barrier.
    """

    def __init__(
        self,
        num_particles: int,
        max_plate_nesting: int,
        resampler: Resampler,
        ess_threshold: float = 0.5,
        *,
        resample_finished: bool = False,
        record_log_probs: bool = False,
        selection: Selection | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__()
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self.resampler = resampler
        self.ess_threshold = ess_threshold
        self.resample_finished = resample_finished
        self.record_log_probs = record_log_probs
        self.selection = selection
        self.callback = callback

    def __enter__(self) -> ParticleMessenger:
        self.weights: Weights | None = None
        self.log_likelihood: Tensor | None = None  # [N, *plates] of the observed sites, not tempered
        self.lengths = torch.zeros((), dtype=torch.long)  # [N, *plates] segments that each lane took part in
        self.plates: frozenset[Frame] | None = None  # plates that every site so far lies in
        self.sites: list[Site] = []
        self.steps: list[Step] = []
        self.unchecked: list[tuple[str, Weights]] = []  # weights after each factor since the last check
        self.last: Snapshot | None = None  # of the last barrier
        self._partial: ParticlePosterior | None = None
        self.segment = self._counted = -1  # segments between barriers, counted where they have a latent site
        self._in_segment = False
        self._done: Tensor | None = None  # [N, *plates] lanes that were done at the last barrier
        self._stack: list[tuple[str, int | None]] = []  # plates around the last site
        super().__enter__()
        return self

    # propose ------------------------------------------------------------------------------------------------------------------------

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        if not self._in_segment:
            self._in_segment, self.segment = True, self.segment + 1
        self.propose(msg)

    def propose(self, msg: Any) -> None:
        """``x ~ q``; from the prior Pyro draws by itself."""
        if msg["value"] is None and "proposal" in msg["infer"]:
            msg["value"] = msg["infer"]["proposal"].sample()

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        self._meet_plates(msg)
        if self._counted < self.segment:  # a segment counts for the lanes that are not done when its first latent site is met
            self._counted = self.segment
            self.lengths = self.lengths + (1 if self._done is None else (~self._done).long())
        log_prob = scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, msg["mask"]) if self._needs_log_prob(msg) else None
        self.reweight(msg, log_prob)
        self.record(msg, log_prob)

    def _needs_log_prob(self, msg: Any) -> bool:
        prior_proposal = not msg["is_observed"] and "proposal" not in msg["infer"] and is_one(msg["scale"])
        return not is_deterministic(msg) and (self.record_log_probs or not prior_proposal)

    # reweight -----------------------------------------------------------------------------------------------------------------------

    def reweight(self, msg: Any, log_prob: Tensor | None) -> None:
        """``w <- w p(value)^scale / q(value)``; ``p = q`` adds nothing."""
        if log_prob is None:
            return
        if msg["is_observed"]:
            increment = self._per_population(scaled(log_prob, msg["scale"]), msg)
            untempered = msg["infer"].get("untempered_scale")
            plain = increment if untempered is None else self._per_population(scaled(log_prob, untempered), msg)
            assert self.log_likelihood is not None
            self.log_likelihood = self.log_likelihood + plain
        elif "proposal" in msg["infer"]:
            log_q = scale_and_mask(msg["infer"]["proposal"].log_prob(msg["value"]), 1.0, msg["mask"])
            increment = self._per_population(log_prob * msg["scale"] - log_q, msg)
        elif is_one(msg["scale"]):
            return
        else:
            increment = self._per_population(log_prob * (msg["scale"] - 1.0), msg)
        assert self.weights is not None
        self.weights = self.weights.add(increment)
        self.unchecked.append((msg["name"], self.weights))

    def _per_population(self, log_prob: Tensor, msg: Any) -> Tensor:
        return per_population(log_prob, msg["name"], self.num_particles, self.max_plate_nesting, self._dependent_dims())

    def _dependent_dims(self) -> list[int]:
        assert self.plates is not None
        return dependent_dims(self.plates, self.max_plate_nesting) if self.max_plate_nesting else []

    def _meet_plates(self, msg: Any) -> None:
        stack = [(frame.name, frame.dim) for frame in msg["cond_indep_stack"]]
        if stack == self._stack:
            return
        self._stack = stack
        plates = plates_of(msg, self.max_plate_nesting)
        if self.plates is None:
            self.plates = plates
            sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"]}
            shape = [self.num_particles, *(sizes.get(dim, 1) for dim in range(-self.max_plate_nesting, 0))]
            zeros = torch.zeros(shape, device=msg["value"].device, dtype=torch.float64)
            self.weights, self.log_likelihood, self.lengths = Weights(zeros), zeros, zeros.long()
            self._lanes = torch.arange(self.num_particles, device=zeros.device).view(-1, *(1,) * self.max_plate_nesting)
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
            self.plates -= lost

    # record -------------------------------------------------------------------------------------------------------------------------

    def record(self, msg: Any, log_prob: Tensor | None) -> None:
        """Note a site's value with the number of barriers before it."""
        value = None
        if not msg["is_observed"] or is_deterministic(msg):
            shape = msg["fn"].shape()
            value = msg["value"] if msg["value"].shape == shape else msg["value"].expand(shape)
        if value is not None or self.record_log_probs:
            self.sites.append(Site(msg["name"], value, log_prob if self.record_log_probs else None, len(self.steps)))

    # resample -----------------------------------------------------------------------------------------------------------------------

    def _pyro_barrier(self, msg: Any) -> None:
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        if self.weights is None:
            raise ValueError("the model reached a barrier before any sample site; put the barrier after a step's sites")
        self.check_alive()
        ess = self.weights.ess
        msg["value"] = self.resample(state, ess)
        msg["done"] = True
        self._done = self.population_done(msg["value"])
        self._in_segment = False
        self.last, self._partial = self.snapshot(msg["value"]), None
        if self.callback is not None and self.partial is not None:
            self.callback(self.partial)

    def resample(self, state: Any, ess: Tensor) -> Any:
        """Where the ESS is low: ancestors A ~ r(.|V), state <- state[A], w <- w_A / (N V_A); V = W unless a selection says otherwise."""
        assert self.weights is not None and self.log_likelihood is not None
        ancestors = self._lanes.expand_as(self.weights.log_weights)
        chosen = self.ess_triggers(ess)
        if not self.resample_finished and (done := self.population_done(state)) is not None:
            chosen = chosen & ~done.all(0).expand_as(chosen)
        if chosen.any():
            selection = self.weights if self.selection is None else Weights(self.selection(self.weights, state, len(self.steps)))
            ancestors = torch.where(chosen, self.draw_ancestors(chosen, selection), ancestors)
            if self.selection is None or not self.selection.keeps_target:
                self.weights = self.weights.set_to_mean(chosen)
            else:
                self.weights = self.weights.divided_by(selection, ancestors, chosen)
            self.log_likelihood = self.log_likelihood.gather(0, ancestors)
            self.lengths = self.lengths.expand_as(ancestors).gather(0, ancestors)
            state = reorder(state, ancestors)
        self.steps.append(Step(ess, ancestors, chosen))
        return state

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

    def ess_triggers(self, ess: Tensor) -> Tensor:
        """``[*plates]``: populations to resample. The rounding of the ESS must not undo a threshold of 1."""
        return ess <= self.ess_threshold * self.num_particles * (1 + 1e-9)

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        """Ancestors ``[N, *plates]`` of all populations in proportion to ``selection``, of which those in ``chosen [*plates]`` are used."""
        u = self.draw_uniforms(self.resampler.num_uniforms(self.num_particles))
        return self.resampler(selection.log_weights, u)

    def draw_uniforms(self, count: int) -> Tensor:
        assert self.weights is not None
        like = self.weights.log_weights
        return torch.rand(count, *like.shape[1:], dtype=torch.float64, device=like.device)

    def check_alive(self) -> None:
        """
        :raises SMCFailed: if a population is dead, naming the site that killed it.
        :raises ValueError: for a nan weight, naming the site.
        """
        pending, self.unchecked = self.unchecked, []
        if pending and not _all_finite(pending[-1][1].log_mean):
            assert self.plates is not None
            raise_for_dead(pending, sorted(frame.dim for frame in self.plates), self.num_particles)

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
            self.lengths,
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


def _all_finite(tensor: Tensor) -> bool:
    return math.isfinite(tensor.item()) if tensor.numel() == 1 else bool(tensor.isfinite().all())
