"""Continuing prefixes of different lengths in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import SMCFailed
from ..particles.site_util import draw_where, select
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from .particle_messenger import ParticleMessenger
from .pause_messenger import Paused
from .replay_messenger import KnownValue, ReplayMessenger
from .sweep import sweep


class Prefixes(NamedTuple):
    """Beginnings of executions, each cut off at a barrier.

    :ivar dict values: ``[L, *plates, *event]`` per latent site; what lies behind the cut does not count.
    :ivar dict barriers: of each site, the number of barriers before it.
    :ivar Tensor depth: ``[L, *plates]``, segments that are kept.
    """

    values: Mapping[str, Tensor]
    barriers: Mapping[str, int]
    depth: Tensor

    def known(self) -> dict[str, KnownValue]:
        return {name: KnownValue(value, self.barriers[name] < self.depth) for name, value in self.values.items()}

    def with_segment(self, drawn: Extension, chosen: Tensor) -> Prefixes:
        """The prefixes ``chosen [L, *plates]`` one segment longer, as it was drawn."""
        values, barriers = dict(self.values), {**self.barriers, **drawn.barriers}
        for name, value in drawn.values.items():
            new = chosen & (self.depth == barriers[name])
            new = new.reshape(*new.shape, *(1,) * (value.dim() - new.dim()))
            values[name] = torch.where(new, value, values[name]) if name in values else value
        return Prefixes(values, barriers, self.depth + chosen.long())


class Extension(NamedTuple):
    """What was drawn after prefixes, and how the model scored it.

    :ivar dict values: ``[L, *plates, *event]`` per latent site met.
    :ivar dict barriers: of each site, the number of barriers before it.
    :ivar Tensor log_weights: ``[G, L, *plates]`` of the executions up to the end of each segment.
    :ivar Tensor done: ``[G, L, *plates]``: executions that are complete there. The end of the model completes all.
    :ivar ParticlePosterior partial: the executions at the last barrier; ``None`` before the first.
    """

    values: Mapping[str, Tensor]
    barriers: Mapping[str, int]
    log_weights: Tensor
    done: Tensor
    partial: ParticlePosterior | None


class Scored(NamedTuple):
    """A beginning that all particles know and that is not scored again.

    :ivar int segments: its length.
    :ivar Tensor log_weights: ``[L, *plates]`` of the executions there.
    """

    segments: int
    log_weights: Tensor


class PrefixMessenger(ReplayMessenger):
    """Every particle follows a prefix of its own, then draws from the prior; factors are scored, and nothing is resampled.

    :param int until: leave the model before the first site behind so many segments; ``None`` runs it to its end.
    :param Tensor ends: ``[L, *plates]``: segments behind which a particle draws nothing that is used; ``None`` for none. A distribution
        with ``sample_where`` does no work there.
    :param Scored scored: a beginning whose factors are not evaluated.
    """

    def __init__(
        self,
        num_particles: int,
        max_plate_nesting: int,
        known: Mapping[str, KnownValue],
        until: int | None = None,
        ends: Tensor | None = None,
        scored: Scored | None = None,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, dict(known))
        self.until, self.ends, self.scored = until, ends, scored

    def __enter__(self) -> PrefixMessenger:
        self.log_weights: list[Tensor] = []
        self.in_segment = False  # whether a site has been met since the last barrier
        self.done: list[Tensor] = []
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            if len(self.done) == self.until:
                raise Paused
            self.in_segment = True
        super()._pyro_sample(msg)

    def propose(self, msg: Any) -> None:
        drawing = None if self.ends is None else len(self.done) < self.ends
        if drawing is None or bool(drawing.all()):
            super().propose(msg)
            return
        fn = msg["fn"]
        drawing = drawing.expand(fn.batch_shape)
        if msg["name"] not in self.values:
            msg["value"] = draw_where(fn, drawing)
            return
        given, known = self.values[msg["name"]]
        value, known = given.expand(*fn.batch_shape, *fn.event_shape), known.expand(fn.batch_shape)
        msg["value"] = select(known, value, draw_where(fn, drawing & ~known), len(fn.event_shape))

    def _needs_log_prob(self, msg: Any) -> bool:
        if self.scored is not None and len(self.done) < self.scored.segments:
            return False
        return ParticleMessenger._needs_log_prob(self, msg)

    def _pyro_barrier(self, msg: Any) -> None:
        super()._pyro_barrier(msg)
        if self.scored is not None and len(self.done) + 1 == self.scored.segments:
            self.system.weights = Weights(self.scored.log_weights)
        done, weights = self.system.done, self.system.weights.log_weights
        self.note(torch.zeros_like(weights, dtype=torch.bool) if done is None else done.to(weights.device).expand_as(weights))

    def note(self, done: Tensor) -> None:
        """A segment has ended."""
        self.in_segment = False
        self.log_weights.append(self.system.weights.log_weights)
        self.done.append(done)

    def check_alive(self) -> None:
        """An impossible continuation is one that is not taken."""
        with suppress(SMCFailed):
            super().check_alive()

    def extension(self) -> Extension:
        """What was met, once the model has been left."""
        sites = [site for site in self.system.sites if site.value is not None]
        values = {site.name: site.value for site in sites if site.value is not None}
        barriers = {site.name: site.barriers for site in sites}
        return Extension(values, barriers, torch.stack(self.log_weights), torch.stack(self.done), self.partial)


def extend(
    model: Callable[..., Any],
    known: Mapping[str, KnownValue],
    num_particles: int,
    max_plate_nesting: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    until: int | None = None,
    ends: Tensor | None = None,
    scored: Scored | None = None,
) -> Extension:
    """Run ``model(*args, **kwargs)`` along known values, and by its prior beyond them; see :class:`PrefixMessenger`."""
    messenger = PrefixMessenger(num_particles, max_plate_nesting, known, until, ends, scored)
    try:
        sweep(model, messenger, args, kwargs)
    except Paused:
        return messenger.extension()
    ended = torch.ones_like(messenger.system.weights.log_weights, dtype=torch.bool)
    if messenger.in_segment:
        messenger.note(ended)
    else:
        messenger.done[-1] = ended
    return messenger.extension()
