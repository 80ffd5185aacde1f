"""The handler of conditional SMC: one lane follows a given trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .resampling import ConditionalResampler


class ReferenceMessenger(ParticleMessenger):
    """A particle filter in which one lane is pinned to a reference (Andrieu, Doucet & Holenstein, 2010, Algorithm 2).

    The reference may be longer or shorter than the other lanes: at a site that it does not have its lane is done, and a done lane has one
    value only. The slot it lives in is tracked, since conditional resampling may move it.

    :param dict reference: ``{name: [*plates, *event]}`` values of latent sites.
    """

    def __init__(
        self,
        num_particles: int,
        max_plate_nesting: int,
        resampler: ConditionalResampler,
        ess_threshold: float = 0.5,
        *,
        reference: dict[str, Tensor],
        resample_finished: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, resampler, ess_threshold, resample_finished=resample_finished, callback=callback)
        self.conditional = resampler
        self.reference = reference

    def __enter__(self) -> ReferenceMessenger:
        self.slot = torch.zeros((1,) * self.max_plate_nesting, dtype=torch.long)
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.reference or site_is_subsample(msg):
            return
        value = msg["fn"].sample() if msg["value"] is None else msg["value"]
        event = value.shape[value.dim() - msg["fn"].event_dim :]
        plates = value.shape[1 : value.dim() - msg["fn"].event_dim]
        pinned = self.reference[msg["name"]].to(value).expand(*plates, *event)
        slot = self.slot.to(value.device).expand(plates).reshape(*plates, *(1 for _ in event)).expand(*plates, *event)
        msg["value"] = value.scatter(0, slot[None], pinned[None])

    def draw_ancestors(self, chosen: Tensor) -> Tensor:
        assert self.weights is not None
        log_weights = self.weights.log_weights
        u = self.draw_uniforms(self.conditional.num_conditional_uniforms(self.num_particles))
        here = self.slot.to(log_weights.device).expand(log_weights.shape[1:])
        ancestors, slot = self.conditional.conditional(log_weights, here, u)
        self.slot = torch.where(chosen, slot, here)
        return ancestors
