"""Running a model again along trajectories that are known."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..particles.site_util import draw_where, select
from .filter_options import FilterOptions
from .particle_messenger import ParticleMessenger


class KnownValue(NamedTuple):
    """Values of a site ``[N, *plates, *event]`` and the particles ``[N, *plates]`` for which they are known."""

    value: Tensor
    known: Tensor


class ReplayMessenger(ParticleMessenger):
    """Every particle follows its own trajectory; nothing is scored.

    A particle without a value at a site is done there, and a done particle has one value only: drawing it costs nothing.

    :param dict values: a :class:`KnownValue` per latent site.
    """

    def __init__(self, num_particles: int, max_plate_nesting: int, values: dict[str, KnownValue]) -> None:
        super().__init__(FilterOptions(num_particles, max_plate_nesting, ess_threshold=0.0))
        self.values = values

    def propose(self, msg: Any) -> None:
        if msg["name"] not in self.values:
            super().propose(msg)
            return
        value, known = self.values[msg["name"]]
        fn = msg["fn"]
        batch, event = fn.batch_shape, fn.event_shape
        value, known = value.expand(*batch, *event), known.expand(batch)
        msg["value"] = value.clone() if bool(known.all()) else select(known, value, draw_where(fn, ~known), len(event))

    def _needs_log_prob(self, msg: Any) -> bool:
        return False
