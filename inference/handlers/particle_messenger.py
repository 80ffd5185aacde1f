"""The handler that turns an ordinary Pyro model with barriers into a particle filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..particles.particle_system import ParticleSystem
from ..particles.pytree import reorder
from ..particles.site_util import is_deterministic, is_one, raise_for_dead, scaled
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..resampling import Resampler
from ..resampling.selection import Selection


class ParticleMessenger(ParticleSystem, Messenger):
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
        super().__init__(num_particles, max_plate_nesting, record_log_probs)
        self.resampler = resampler
        self.ess_threshold = ess_threshold
        self.resample_finished = resample_finished
        self.selection = selection
        self.callback = callback

    def __enter__(self) -> ParticleMessenger:
        self.clear()
        super().__enter__()
        return self

    # propose ------------------------------------------------------------------------------------------------------------------------

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        self.open_segment()
        self.propose(msg)

    def propose(self, msg: Any) -> None:
        """``x ~ q``; from the prior Pyro draws by itself."""
        if msg["value"] is None and "proposal" in msg["infer"]:
            msg["value"] = msg["infer"]["proposal"].sample()

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        self._meet_plates(msg)
        self.count_segment()
        log_prob = None
        if self._needs_log_prob(msg):
            log_prob = msg["fn"].log_prob(msg["value"])
            if msg["mask"] is not None:
                log_prob = scale_and_mask(log_prob, mask=msg["mask"])
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

    # resample -----------------------------------------------------------------------------------------------------------------------

    def _pyro_barrier(self, msg: Any) -> None:
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        if self.weights is None:
            raise ValueError("the model reached a barrier before any sample site; put the barrier after a step's sites")
        self.check_alive()
        ess = self.weights.ess
        msg["value"] = self.resample(state, ess)
        msg["done"] = True
        self.close_segment(msg["value"])
        if self.callback is not None and self.partial is not None:
            self.callback(self.partial)

    def resample(self, state: Any, ess: Tensor) -> Any:
        """Where the ESS is low: ancestors A ~ r(.|V), state <- state[A], w <- w_A / (N V_A); V = W unless a selection says otherwise."""
        assert self.weights is not None
        before, chosen = self.step_before(state, ess), self.ess_triggers(ess)
        if not self.resample_finished and before.done is not None:
            chosen = chosen & ~before.done.all(0)
        if not bool(chosen if chosen.numel() == 1 else chosen.any()):
            self.steps.append(before)
            return state
        selection = self.weights if self.selection is None else Weights(self.selection(self.weights, state, len(self.steps)))
        ancestors = torch.where(chosen, self.draw_ancestors(chosen, selection), before.ancestors)
        if self.selection is None or not self.selection.keeps_target:
            self.weights = self.weights.set_to_mean(chosen)
        else:
            self.weights = self.weights.divided_by(selection, ancestors, chosen)
        self.permute(ancestors)
        state = reorder(state, ancestors)
        self.steps.append(before._replace(ancestors=ancestors, resampled=chosen))
        return state

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
        if pending and not pending[-1][1].alive:
            assert self.plates is not None
            raise_for_dead(pending, sorted(frame.dim for frame in self.plates), self.num_particles)
