"""The replay audit: do the log-probabilities and the result of a sweep belong to the trajectories that it reports?

A sweep reports trajectories: the values of the sites along surviving lineages. The audit runs the model once more, particle n along
trajectory n. At every barrier of that replay the particles change places, whether or not the sweep resampled there: all that passes the
barrier moves, and so do the values that the audit hands out. Then

- the log-probability of every site must be the one that the sweep accumulated along the lineage,
- every deterministic site and every leaf of what the model returns must be the sweep's,

each in the place to which its particle has moved. What a model keeps beside the barrier stays in its old place, and differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import AuditError
from ..particles.leaves import Leaf, copied, leaves
from ..particles.pytree import map_leaves, permute, reorder, take
from ..particles.site_util import is_deterministic
from ..posterior.audit_report import AuditReport
from ..posterior.particle_posterior import ParticlePosterior
from ..util.process_state import isolated
from .particle_plate import particle_plate
from .randomness_messenger import RandomnessMessenger

_ATOL, _RTOL = 1e-3, 1e-4
"""What different batches of the same float32 forward pass may differ by; a stale state differs by nats."""

_CAUSES = (
    "The model uses a value that it does not thread through barrier(): after resampling that value belongs to another particle. Or it "
    "draws random numbers outside of its sites, changes tensors in place, or keeps something from one run to the next."
)


class Audited(NamedTuple):
    """What a sweep reports.

    :ivar dict values: ``[N, *plates, *event]`` per latent or deterministic site, along the lineages.
    :ivar dict log_probs: ``[N, *plates]`` per site, as accumulated, along the lineages.
    :ivar value: what the model returned.
    :ivar torch.Size populations: ``[*plates]`` of the weights: 1 for a plate whose elements move together.
    :ivar list resampled: whether each barrier of the sweep resampled.
    :ivar bool same_barriers: whether a replay passes as many barriers; the candidates of a search may end before the search does.
    """

    values: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    value: Any
    populations: torch.Size
    resampled: list[bool]
    same_barriers: bool = True

    @classmethod
    def of(cls, posterior: ParticlePosterior, log_probs: dict[str, Tensor] | None = None, same_barriers: bool = True) -> Audited:
        resampled = [bool(record.resampled.any()) for record in posterior.particles.records]
        known = posterior.site_log_probs if log_probs is None else log_probs
        populations = posterior.particles.weights.log_weights.shape[1:]
        return cls(posterior.sites, known, copied(posterior.value), populations, resampled, same_barriers)


class AuditMessenger(Messenger):
    """Replays a model on the values of a posterior's lineages and compares what it computes, see the top of this file.

    A model that forgets to thread a value through the barrier keeps using the values of dead particles after resampling. The evidence
    estimate does not show this; the audit does.

    :param Audited swept: of the sweep.
    :param int num_particles: N.
    :param Tensor shifts: ``[*plates]``: by how many places the particles of each population move at a barrier.
    """

    def __init__(self, swept: Audited, num_particles: int, shifts: Tensor) -> None:
        super().__init__()
        self.swept, self.num_particles, self.shifts = swept, num_particles, shifts

    def __enter__(self) -> AuditMessenger:
        self.remaining = dict(self.swept.log_probs)
        self.error = self.rounding = 0.0
        self.num_sites = self.num_leaves = self.num_barriers = 0
        self.number_format = 0.0  # the largest rounding that a site asked for
        super().__enter__()
        return self

    def after(self, num_barriers: int) -> Tensor:
        """``[N, *plates]``: where the particle in each place was so many barriers before."""
        own = torch.arange(self.num_particles, device=self.shifts.device).view(-1, *(1,) * self.shifts.dim())
        return (own + num_barriers * self.shifts) % self.num_particles

    @property
    def places(self) -> Tensor:
        """``[N, *plates]``: the particle of the sweep in each place."""
        return self.after(self.num_barriers)

    def moved(self, tensor: Tensor) -> Tensor:
        """``[N, *plates, ...]`` of the sweep with every particle in its present place; a copy, which the model may change."""
        return take(tensor, self.places.to(tensor.device))

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["is_observed"]:
            return
        if msg["name"] not in self.swept.values:
            raise AuditError(
                f"site {msg['name']!r} is met in the replay but was not in the sweep: the model's control flow depends on stale state"
            )
        msg["value"] = self.moved(self.swept.values[msg["name"]])

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        name = msg["name"]
        if is_deterministic(msg):
            self._compare_deterministic(name, msg["value"])
            return
        replayed = scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, msg["mask"]).to(torch.float64)
        tolerance = rounding_of(msg["fn"], msg["value"])
        self.number_format = max(self.number_format, tolerance)
        swept = self.remaining.pop(name, None)
        self._compare_log_prob(name, None if swept is None else self.moved(swept), replayed, tolerance)

    def _pyro_barrier(self, msg: Any) -> None:
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        msg["value"], msg["done"] = reorder(state, self.after(1)), True
        self.num_barriers += 1

    # comparisons --------------------------------------------------------------------------------------------------------------------

    def _compare_log_prob(self, name: str, accumulated: Tensor | None, replayed: Tensor, tolerance: float) -> None:
        if accumulated is None:
            accumulated = torch.zeros_like(replayed)
        accumulated, replayed = torch.broadcast_tensors(accumulated.to(torch.float64), replayed)
        difference = torch.where(accumulated == replayed, 0.0, (accumulated - replayed).abs())
        relative = max(_RTOL, tolerance / 8) * torch.where(accumulated.isfinite(), accumulated, 0.0).abs()
        excess = difference - (max(_ATOL, tolerance) + relative)
        wrong = ~(excess <= 0)
        if wrong.any():
            where = tuple(wrong.nonzero()[0].tolist())
            raise AuditError(
                f"site {name!r}, particle {where[0] if len(where) == 1 else where}: the sweep accumulated a log-probability of "
                f"{accumulated[where]:.6g}, the replay of its lineage gives {replayed[where]:.6g}. {_CAUSES}"
            )
        self.error = max(self.error, float(excess.max()))
        self.rounding = max(self.rounding, float(difference.max()))
        self.num_sites += 1

    def _compare_deterministic(self, name: str, value: Any) -> None:
        swept = self.swept.values.get(name)
        if isinstance(value, Tensor) and swept is not None and swept.shape == value.shape and len(value) == self.num_particles:
            self._compare_leaf(Leaf(f"deterministic site {name!r}", self.moved(swept)), Leaf("", value))

    def _compare_leaf(self, swept: Leaf, replayed: Leaf) -> None:
        if not swept.equals(replayed, max(_ATOL, self.number_format), max(_RTOL, self.number_format)):
            raise AuditError(f"{swept.path}: the sweep gave {swept.shown}, the replay of its lineages gives {replayed.shown}. {_CAUSES}")
        self.num_leaves += 1

    def compare_result(self, value: Any) -> None:
        """
        :raises AuditError: if the model returns something else than it did in the sweep.
        """
        if self.swept.same_barriers and self.num_barriers != len(self.swept.resampled):
            raise AuditError(
                f"the sweep passed {len(self.swept.resampled)} barriers, the replay of its lineages {self.num_barriers}: the model's "
                f"control flow depends on stale state. {_CAUSES}"
            )
        expected = leaves(map_leaves(self.swept.value, lambda item: permute(item, self.places), self._moved_part), self.places)
        found = leaves(value, None)
        if len(expected) != len(found):
            raise AuditError(f"the sweep returned {len(expected)} leaves, the replay of its lineages {len(found)}. {_CAUSES}")
        for swept, replayed in zip(expected, found, strict=True):
            self._compare_leaf(swept, replayed)

    def _moved_part(self, tensor: Tensor) -> Tensor:
        """A tensor of what the model returned: its first dimension is the particles where it is as long."""
        places = self.places.to(tensor.device)
        if tensor.dim() == 0 or len(tensor) != self.num_particles:
            return tensor
        if tensor.dim() < places.dim():
            return tensor[places.flatten()] if places.numel() == len(places) else tensor
        return take(tensor, places)

    def report(self) -> AuditReport:
        """
        :raises AuditError: if the sweep met a site that the replay did not and that did not have probability one.
        """
        for name, accumulated in self.remaining.items():
            self._compare_log_prob(name, accumulated, torch.zeros_like(accumulated), 0.0)
        permuted = self.num_barriers if self.num_particles > 1 else 0
        return AuditReport(self.error, self.rounding, self.num_sites, self.num_leaves, sum(self.swept.resampled), permuted)


def rounding_of(fn: Any, value: Tensor) -> float:
    """By how many nats two evaluations of a log-probability may differ: what the distribution says in ``rounding(value)``, as those of
    networks in bfloat16 do, else that of its number format."""
    while not callable(getattr(fn, "rounding", None)):
        if not hasattr(fn, "base_dist"):
            return 0.0
        fn = fn.base_dist
    return float(fn.rounding(value))


def audit(
    model: Callable[..., Any],
    swept: Audited,
    num_particles: int,
    max_plate_nesting: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> AuditReport:
    """Replay ``model(*args, **kwargs)`` on the values of lineages; see :class:`AuditMessenger`.

    :raises AuditError: if a log-probability or a part of the result differs.
    """
    # Neighbouring populations move differently, and none stays where it is.
    numbers = torch.arange(swept.populations.numel()).view(swept.populations)
    auditor = AuditMessenger(swept, num_particles, 1 + numbers % max(num_particles - 1, 1) if num_particles > 1 else numbers * 0)
    with isolated(), auditor, particle_plate(num_particles, max_plate_nesting), RandomnessMessenger() as randomness:
        value = model(*args, **kwargs)
        randomness.finish()
        auditor.compare_result(value)
    return auditor.report()
