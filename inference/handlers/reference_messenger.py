"""The handler of conditional SMC: one particle follows a given trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..particles.site_util import draw, select
from ..particles.weights import Weights
from ..resampling import get_conditional_resampler
from .filter_options import FilterOptions
from .particle_messenger import ParticleMessenger


class ReferenceMessenger(ParticleMessenger):
    """A particle filter in which one particle is pinned to a reference (Andrieu, Doucet & Holenstein, 2010, Algorithm 2).

    The reference may be longer or shorter than the other particles: at a site that it does not have its particle is done, and a done
    particle has one value only. The slot it lives in is tracked, since conditional resampling may move it.

    :param FilterOptions options: of the filter, with a conditional resampling scheme.
    :param reference: ``{name: [*plates, *event]}`` values of latent sites.
    :raises ValueError: if the resampling scheme has no conditional form.
    """

    def __init__(self, options: FilterOptions, *, reference: Mapping[str, Tensor]) -> None:
        super().__init__(options)
        self.conditional = get_conditional_resampler(options.resampler)
        self.reference = reference

    def __enter__(self) -> ReferenceMessenger:
        self.slot = torch.zeros((1,) * self.options.max_plate_nesting, dtype=torch.long)
        super().__enter__()
        return self

    def propose(self, msg: Any) -> None:
        """``x ~ q`` on the free particles, the reference's value on the others.

        A distribution that draws particles jointly, each from the right marginal, is asked for the one that draws them ``independently()``:
        given the reference, the other particles of a joint draw have other marginals, and the extended target has the product of these.
        """
        infer = msg["infer"]
        if hasattr(msg["fn"], "independently"):
            msg["fn"] = msg["fn"].independently()
        if hasattr(infer.get("proposal"), "independently"):
            msg["infer"] = {**infer, "proposal": infer["proposal"].independently()}
        if msg["name"] not in self.reference:
            super().propose(msg)
            return
        batch, event = msg["fn"].batch_shape, msg["fn"].event_shape
        reference = self.reference[msg["name"]]
        pinned = self.pinned(reference.device).expand(batch)
        fixed = reference.expand(torch.Size([*batch[1:], *event])).expand(*batch, *event)
        if bool(pinned.all()):
            msg["value"] = fixed.clone()
            return
        free = draw(msg, ~pinned) if msg["value"] is None else msg["value"]
        msg["value"] = select(~pinned, free, fixed, len(event))

    def pinned(self, device: torch.device) -> Tensor:
        """``[N, *plates]``: particles that follow the reference in the present segment."""
        return self.system.numbers.to(device) == self.slot.to(device)

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        """A ~ r(.|V) given that the reference survives.

        The reference starts in the first particle, while a scheme may treat particles differently (stratified resampling does: the
        distribution of another particle's offspring depends on where the reference is). The invariant distribution has it anywhere with
        equal probability, so the particles are numbered from a random one on; this leaves the scheme unbiased.
        """
        log_weights, n = selection.to_draw_by, self.options.num_particles
        u = self.draw_uniforms(self.conditional.num_conditional_uniforms(n))
        here = self.slot.to(log_weights.device).expand(log_weights.shape[1:])
        rotation = self.draw_rotation()
        order = ((self.system.numbers - rotation) % n).expand_as(log_weights)
        ancestors, slot = self.conditional.conditional(log_weights.gather(0, order), (here + rotation) % n, u)
        self.slot = torch.where(chosen, slot, here)
        return order.gather(0, ancestors)

    def draw_rotation(self) -> Tensor:
        """``[*plates]``: new number of the first particle."""
        return (self.draw_uniforms(1)[0] * self.options.num_particles).long()
