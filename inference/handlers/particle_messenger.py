"""The handler that turns an ordinary Pyro model with barriers into a particle filter.

Algorithm 10.1 of Chopin & Papaspiliopoulos (2020). The model is the loop over t, the segments between its barriers; lines stand for all
n = 1 .. N, and the name on the right is the method that does it::

    for t = 0, 1, .., T:
        at the barrier before t > 0, where ESS(W_{t-1}) <= threshold * N:
            A_t^n ~ r(. | V_{t-1}^{1:N})                                  draw_ancestors; V = W unless a selection gives others
            w_{t-1}^n <- w_{t-1}^{A_t^n} / (N V_{t-1}^{A_t^n})            resample; the mean of w where V = W
        elsewhere A_t^n = n; a RejuvenateMessenger then moves the particles that were resampled
        X_t^n ~ q_t(x_{t-1}^{A_t^n}, .)                                   propose; q = p without a proposal
        w_t^n <- w_{t-1}^n p(X_t^n | ..) p(y_t | X_t^n, ..) / q(X_t^n)    reweight, site by site
        keep X_t, and (A_t, w_{t-1}) of the barrier                       ParticleSystem.record, .records
    the evidence estimate is the mean of w_T                              posterior(..).log_evidence
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import SMCFailed
from ..particles.categorical import draw_categorical, is_categorical
from ..particles.particle_system import ParticleSystem
from ..particles.pytree import reorder
from ..particles.site_util import draw, give, is_deterministic, is_given, is_one, raise_for_dead, read_site, scaled
from ..particles.snapshot import Snapshot
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..resampling.selection import checked_selection
from .filter_options import FilterOptions
from .power_messenger import BRIDGE


class ParticleMessenger(Messenger):
    """Propose, reweight, record, resample: one pass over a model, as the pseudo-code at the top of this file has it.

    Enter it outside the particle plate ``pyro.plate("_particles", N, dim=-1 - max_plate_nesting)``. Latent sites are proposed from the
    prior, which cancels structurally, unless a :class:`~ppl_llm.inference.ProposalMessenger` inside proposed their value. Weights keep
    the plates that every site lies in: these populations are independent and are resampled each on its own.

    :param FilterOptions options: of the filter.
    :ivar ParticleSystem system: the particles of the pass, made when the handler is entered.
    :cvar bool bridges: whether barriers see the powers of a bridge (:func:`~ppl_llm.inference.power`), or the whole power.
    """

    bridges: ClassVar[bool] = True

    def __init__(self, options: FilterOptions) -> None:
        super().__init__()
        self.options = options

    def __enter__(self) -> ParticleMessenger:
        options = self.options
        self.system = ParticleSystem(options.num_particles, options.max_plate_nesting, options.record_log_probs)
        super().__enter__()
        return self

    # propose ------------------------------------------------------------------------------------------------------------------------

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        self.system.begin_segment()
        if msg["done"]:
            give(msg)
        else:
            self.propose(msg)

    def propose(self, msg: Any) -> None:
        """``x ~ q``, and ``x ~ p`` where the site is masked; from most priors Pyro draws by itself."""
        if msg["value"] is not None:
            return
        if "proposal" in msg["infer"]:
            msg["value"] = draw(msg)
        elif is_categorical(msg["fn"]) and not msg["args"] and not msg["kwargs"]:
            msg["value"] = draw_categorical(msg["fn"])

    # reweight -----------------------------------------------------------------------------------------------------------------------

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        self.system.meet(msg)
        log_prob = None
        if self._needs_log_prob(msg):
            log_prob = msg["fn"].log_prob(msg["value"])
            if msg["mask"] is not None:
                log_prob = scale_and_mask(log_prob, mask=msg["mask"])
            self.reweight(msg, log_prob)
        self.system.record(msg, log_prob)

    def _needs_log_prob(self, msg: Any) -> bool:
        infer = msg["infer"]
        prior_proposal = not msg["is_observed"] and "proposal" not in infer and BRIDGE not in infer and is_one(msg["scale"])
        return not is_deterministic(msg) and (self.options.record_log_probs or not prior_proposal)

    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        """``w <- w p(value)^scale / q(value)``; ``p = q`` adds nothing, nor does a value that is given or masked."""
        system, name, scale = self.system, msg["name"], msg["scale"]
        if msg["is_observed"]:
            increment, untempered = log_prob if is_one(scale) else scaled(log_prob, scale), msg["infer"].get("untempered_scale")
            system.add(name, increment, observed=increment if untempered is None else scaled(log_prob, untempered))
        elif is_given(msg):
            return
        elif "proposal" in msg["infer"]:
            log_q = msg["infer"]["proposal"].log_prob(msg["value"])
            mask = read_site(msg).mask_of_events(name)
            system.add(name, log_prob * scale - (log_q if mask is None else torch.where(mask, log_q, 0.0)))
        elif not is_one(scale):
            read_site(msg)  # refuses masks that cannot be told from the distribution
            system.add(name, log_prob * (scale - 1.0))
        if BRIDGE in msg["infer"]:
            system.add_bridged(name, log_prob * scale, msg["infer"][BRIDGE])

    # resample -----------------------------------------------------------------------------------------------------------------------

    def _pyro_barrier(self, msg: Any) -> None:
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        if self.system.plates is None:
            raise ValueError("the model reached a barrier before any sample site; put the barrier after a step's sites")
        try:
            self.check_alive()
        except SMCFailed as failed:
            failed.value = state
            raise
        self.bridge(self.system.share_here if self.bridges else 1.0)
        msg["value"] = self.resample(state, self.system.weights.ess)
        msg["done"] = True
        self.system.end_segment(msg["value"])
        self.bridge(1.0)

    def bridge(self, share: float) -> None:
        """``w <- w p(x)^(alpha' - alpha)``: to the power that a barrier has, and back to the whole one."""
        self.system.bridge_to(share)

    def resample(self, state: Any, ess: Tensor) -> Any:
        """Where the ESS is low: ancestors A ~ r(.|V), state <- state[A], w <- w_A / (N V_A); V = W unless a selection says otherwise."""
        system, selection, w = self.system, self.options.selection, self.system.weights
        system.record_barrier(state, ess)
        chosen, done = self.ess_triggers(ess), system.records[-1].done
        if not w.alive:
            chosen = chosen & ~w.dead
        if not self.options.resample_finished and done is not None:
            chosen = chosen & ~done.all(0)
        if not bool(chosen if chosen.numel() == 1 else chosen.any()):
            return state
        v = w if selection is None else checked_selection(selection, w, state, len(system.records) - 1, chosen)
        ancestors = torch.where(chosen, self.draw_ancestors(chosen, v), system.numbers)
        keeps_residual = selection is not None and selection.keeps_target
        w = w.divided_by(v, ancestors, chosen) if keeps_residual else w.set_to_mean(chosen)
        system.resample(w, ancestors, chosen)
        return reorder(state, ancestors)

    def ess_triggers(self, ess: Tensor) -> Tensor:
        """``[*plates]``: populations to resample. The rounding of the ESS must not undo a threshold of 1."""
        return ess <= self.options.ess_threshold * self.options.num_particles * (1 + 1e-9)

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        """Ancestors ``[N, *plates]`` of all populations in proportion to ``selection``, of which those in ``chosen [*plates]`` are used."""
        u = self.draw_uniforms(self.options.resampler.num_uniforms(self.options.num_particles))
        return self.options.resampler(selection.to_draw_by, u)

    def draw_uniforms(self, count: int) -> Tensor:
        """``[count, *plates]``."""
        like = self.system.weights.log_weights
        return torch.rand(count, *like.shape[1:], dtype=torch.float64, device=like.device)

    def check_alive(self) -> None:
        """
        :raises SMCFailed: if all populations are dead, and may not be, naming the site that killed the last of them.
        :raises ValueError: for a nan weight, naming the site.
        """
        system = self.system
        pending, system.unchecked = system.unchecked, []
        if pending and not pending[-1][1].alive:
            raise_for_dead(pending, self.options.may_die)

    # results ------------------------------------------------------------------------------------------------------------------------

    def posterior(self, snapshot: Snapshot) -> ParticlePosterior:
        """The weighted particles as they were at a barrier, or are at the end."""
        return ParticlePosterior.from_snapshot(snapshot)

    @property
    def partial(self) -> ParticlePosterior | None:
        """The posterior of the last barrier; ``None`` before the first."""
        return None if self.system.last is None else self.posterior(self.system.last)
