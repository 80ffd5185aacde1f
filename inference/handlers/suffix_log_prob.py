"""The density of one trajectory's future after the pasts of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..particles.plates import Frame, dependent_dims, per_population
from ..particles.pytree import particles_done, take_one
from ..particles.site_util import draw_where, give, is_deterministic, is_given, read_site, scaled
from ..util.process_state import isolated
from .particle_plate import particle_plate


class Splice(NamedTuple):
    """Trajectories made of two: each particle's own sites up to a barrier, then those of a reference.

    :ivar dict prefix: ``{name: [N, *plates, *event]}``.
    :ivar suffix: ``{name: [*plates, *event]}``; may hold sites of the prefix too, which do not count.
    :ivar Tensor slot: ``[*plates]``, the particle whose prefix is the reference's own.
    :ivar int barriers: barriers that belong to the prefix.
    """

    prefix: Mapping[str, Tensor]
    suffix: Mapping[str, Tensor]
    slot: Tensor
    barriers: int


class SuffixLogProb(Messenger):
    """Runs a model on spliced trajectories and adds up what their suffixes contribute to the target.

    A site that the reference lacks gets the value that the reference's own particle draws there: that particle is done, so the value is the
    one of a done particle, which has probability zero on a particle that is not. What only done particles would still meet is not run.

    :param frozenset plates: the model's independent plates.
    :param Tensor concerned: ``[*plates]``, populations whose result is wanted.
    """

    def __init__(self, num_particles: int, max_plate_nesting: int, plates: frozenset[Frame], splice: Splice, concerned: Tensor) -> None:
        super().__init__()
        self.num_particles, self.max_plate_nesting = num_particles, max_plate_nesting
        self.dependent = dependent_dims(plates, max_plate_nesting)
        self.splice, self.concerned = splice, concerned

    def run(self, program: Callable[[], Any]) -> Tensor:
        """
        :returns: ``[N, *plates]`` log-densities of the suffixes, -inf where a suffix cannot follow.
        :raises ValueError: for a nan density, naming the site.
        """
        plate = particle_plate(self.num_particles, self.max_plate_nesting)
        # A suffix may be impossible after a foreign prefix; that has density zero and is no mistake of the model.
        with isolated(), pyro.validation_enabled(False), self, plate, suppress(_Settled):
            program()
        return self.log_density

    def __enter__(self) -> SuffixLogProb:
        self.barriers = 0
        like = self.splice.slot
        self.log_density = torch.zeros(
            self.num_particles, *(1,) * self.max_plate_nesting, dtype=torch.float64, device=like.device
        )  # [N, *plates]
        self._done: Tensor | None = None  # particles that were done at the last barrier, where the reference was
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        if msg["done"]:
            give(msg)
            return
        name, fn = msg["name"], msg["fn"]
        prefix, suffix, slot, _ = self.splice
        batch, event = fn.batch_shape, fn.event_shape
        if name in prefix:
            msg["value"] = prefix[name].clone()
        elif name in suffix:
            msg["value"] = suffix[name].expand(torch.Size([*batch[1:], *event])).expand(*batch, *event).clone()
        else:
            numbers = torch.arange(self.num_particles, device=slot.device).view(-1, *(1,) * self.max_plate_nesting)
            drawn = draw_where(fn, (numbers == slot).expand(batch))
            msg["value"] = take_one(drawn, slot[None]).expand(*batch, *event).clone()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.barriers < self.splice.barriers or site_is_subsample(msg) or is_deterministic(msg) or is_given(msg):
            return
        parts = read_site(msg)
        # To the power of 0, an observation of probability zero counts as 1, but a value that the model cannot take stays impossible. Masked
        # observations do not count; a masked latent value belongs to the trajectory, and has its prior there.
        contribution = scaled(parts.log_probs(msg["value"])[0], parts.scale) if msg["is_observed"] else parts.log_density(msg["value"])
        contribution = per_population(contribution, msg["name"], self.num_particles, self.max_plate_nesting, self.dependent)
        impossible = self.log_density == -torch.inf
        self.log_density = torch.where(impossible, -torch.inf, self.log_density + contribution)
        if self.log_density.isnan().any():
            raise ValueError(f"site {msg['name']!r} gave a nan log-probability after another particle's past; check its distribution")
        self._leave_if_settled()

    def _pyro_barrier(self, msg: Any) -> None:
        self.barriers += 1
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        msg["value"], msg["done"] = state, True
        if self.barriers >= self.splice.barriers:
            done = particles_done(state)
            self._done = None if done is None else self._finished(done)
            self._leave_if_settled()

    def _finished(self, done: Tensor) -> Tensor:
        """``[N, *plates]``: done particles of populations whose reference is done: nothing happens to them any more."""
        done = done.reshape(done.shape + (1,) * (1 + self.max_plate_nesting - done.dim()))
        for dim in self.dependent:
            done = done.all(dim, keepdim=True)
        return done & take_one(done, self.splice.slot[None])[None]

    def _leave_if_settled(self) -> None:
        settled = self.log_density == -torch.inf
        settled = settled if self._done is None else settled | self._done
        if bool((settled | ~self.concerned).all()):
            raise _Settled


class _Settled(Exception):
    """Leaves the model once the rest of it cannot change the result."""
