"""The handler that turns an ordinary Pyro model with barriers into a particle filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .errors import SMCFailed
from .particle_posterior import ParticlePosterior, Site, Step
from .resampling import Resampler
from .selection import Selection
from .state import lanes_done, reorder
from .weights import Weights

PLATE = "_particles"


class Frame(NamedTuple):
    """A plate of the model at a batch dimension."""

    name: str
    dim: int


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
        self.unchecked: list[tuple[str, Tensor]] = []  # log mean weight after each factor since the last check
        self.partial: ParticlePosterior | None = None
        self.segment = self._counted = -1  # segments between barriers, counted where they have a latent site
        self._in_segment = False
        self._done: Tensor | None = None  # [N, *plates] lanes that were done at the last barrier
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
        prior_proposal = not msg["is_observed"] and "proposal" not in msg["infer"] and _is_one(msg["scale"])
        return not _is_deterministic(msg) and (self.record_log_probs or not prior_proposal)

    # reweight -----------------------------------------------------------------------------------------------------------------------

    def reweight(self, msg: Any, log_prob: Tensor | None) -> None:
        """``w <- w p(value)^scale / q(value)``; ``p = q`` adds nothing."""
        if log_prob is None:
            return
        if msg["is_observed"]:
            increment = _scaled(log_prob, msg["scale"])
            untempered = _scaled(log_prob, msg["infer"].get("untempered_scale", msg["scale"]))
            assert self.log_likelihood is not None
            self.log_likelihood = self.log_likelihood + self._per_population(untempered, msg)
        elif "proposal" in msg["infer"]:
            log_q = scale_and_mask(msg["infer"]["proposal"].log_prob(msg["value"]), 1.0, msg["mask"])
            increment = log_prob * msg["scale"] - log_q
        elif _is_one(msg["scale"]):
            return
        else:
            increment = log_prob * (msg["scale"] - 1.0)
        assert self.weights is not None
        self.weights = self.weights.add(self._per_population(increment, msg))
        self.unchecked.append((msg["name"], self.weights.log_mean))

    def _per_population(self, log_prob: Tensor, msg: Any) -> Tensor:
        """``[N, *plates]`` in float64: summed over every batch dimension that is not an independent plate."""
        ndim = 1 + self.max_plate_nesting
        if log_prob.dim() != ndim or log_prob.shape[0] != self.num_particles:
            raise ValueError(
                f"site {msg['name']!r} has a log_prob of shape {tuple(log_prob.shape)}, which lacks the particle dimension: expected "
                f"{self.num_particles} at dim {-ndim}. Its distribution must have batch shape [particles, plates] after expand(); a plate "
                f"left of it needs a larger max_plate_nesting (now {self.max_plate_nesting})."
            )
        dependent = self._dependent_dims()
        log_prob = log_prob.to(torch.float64)
        return log_prob.sum(dependent, keepdim=True) if dependent else log_prob

    def _dependent_dims(self) -> list[int]:
        assert self.plates is not None
        independent = {frame.dim for frame in self.plates}
        return [dim for dim in range(-self.max_plate_nesting, 0) if dim not in independent]

    def _meet_plates(self, msg: Any) -> None:
        stack = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
        ours = [frame.dim for frame in stack if frame.name == PLATE]
        outer = [frame.name for frame in stack if ours and frame.dim < ours[0]]
        if outer:
            raise ValueError(
                f"site {msg['name']!r} lies in plate {outer[0]!r} to the left of the particle plate; pass max_plate_nesting="
                f"{self.max_plate_nesting + len(outer)} (the number of nested plates of the model)"
            )
        plates = frozenset(Frame(frame.name, frame.dim) for frame in stack if frame.name != PLATE)
        if self.plates is None:
            self.plates = plates
            zeros = torch.zeros(self.num_particles, *(1,) * self.max_plate_nesting, device=msg["value"].device, dtype=torch.float64)
            self.weights, self.log_likelihood, self.lengths = Weights(zeros), zeros, zeros.long()
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
        if not msg["is_observed"] or _is_deterministic(msg):
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
        self.partial = self.posterior(msg["value"])
        if self.callback is not None:
            self.callback(self.partial)

    def resample(self, state: Any, ess: Tensor) -> Any:
        """Where the ESS is low: ancestors A ~ r(.|V), state <- state[A], w <- w_A / (N V_A); V = W unless a selection says otherwise."""
        assert self.weights is not None and self.log_likelihood is not None
        lanes = torch.arange(self.num_particles, device=ess.device).view(-1, *(1,) * self.max_plate_nesting)
        ancestors = lanes.expand_as(self.weights.log_weights)
        chosen = self.ess_triggers(ess)
        if not self.resample_finished:
            done = self.population_done(state)
            chosen = chosen if done is None else chosen & ~done.all(0).expand_as(chosen)
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
        if not pending or bool(torch.isfinite(pending[-1][1]).all()):
            return
        for site, log_mean in pending:
            if torch.isnan(log_mean).any():
                raise ValueError(f"site {site!r} gave a nan log-probability; check the parameters of its distribution (e.g. nan log-odds)")
            if (log_mean == torch.inf).any():
                raise ValueError(f"site {site!r} gave an infinite log-weight; a factor must be below +inf")
            if (log_mean == -torch.inf).any():
                problem = (log_mean == -torch.inf).nonzero()[0].tolist()
                assert self.plates is not None
                dims = sorted(frame.dim for frame in self.plates)
                raise SMCFailed(site, tuple(problem[dim] for dim in dims), self.num_particles)

    # results ------------------------------------------------------------------------------------------------------------------------

    def posterior(self, value: Any) -> ParticlePosterior:
        """The weighted particles as they are now, with the state or return value that belongs to them."""
        if self.weights is None or self.plates is None:
            raise ValueError("the model has no sample site; there is nothing to infer")
        return ParticlePosterior(
            weights=self.weights,
            plate_dims=tuple(sorted(frame.dim for frame in self.plates)),
            sites=tuple(self.sites),
            steps=tuple(self.steps),
            value=value,
            lengths=self.lengths,
            log_likelihood=self.log_likelihood,
        )


def _scaled(log_prob: Tensor, scale: Any) -> Tensor:
    """``log_prob * scale``, with 0 for a factor of probability zero to the power of 0."""
    if isinstance(scale, Tensor):
        return torch.where(scale == 0, 0.0, log_prob * scale)
    return log_prob * scale if scale != 0 else torch.zeros_like(log_prob)


def _is_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and scale == 1


def _is_deterministic(msg: Any) -> bool:
    return bool(msg["infer"].get("_deterministic", False))
