"""The replay audit: do the log-probabilities and the result of a sweep belong to the trajectories that it reports?

A sweep reports trajectories: the values of the sites along surviving lineages. The audit runs the model once more, particle n along
trajectory n. In that replay the particles begin in other places, change them at every barrier, whether or not the sweep resampled there,
and come to their own with the last: all that passes the barrier moves, and so do the values that the audit hands out. Then

- the log-probability of every site, and the value of every deterministic site, must be those of the trajectory in each place,
- what the model returns must be what it returned in the sweep, part by part, since all particles are in their own places again.

What a model keeps beside the barrier, from before the first one on, stays in a place that is not its own, and differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import AuditError
from ..particles.leaves import Comparison, Differs, copied
from ..particles.pytree import particles_done, reorder, take
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
    :ivar int num_barriers: that the model passes along these trajectories.
    """

    values: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    value: Any
    populations: torch.Size
    resampled: list[bool]
    num_barriers: int

    @classmethod
    def of(cls, posterior: ParticlePosterior, log_probs: dict[str, Tensor] | None = None, num_barriers: int | None = None) -> Audited:
        resampled = [bool(record.resampled.any()) for record in posterior.particles.records]
        known = posterior.site_log_probs if log_probs is None else log_probs
        populations = posterior.particles.weights.log_weights.shape[1:]
        passed = len(resampled) if num_barriers is None else num_barriers
        return cls(posterior.sites, known, copied(posterior.value), populations, resampled, passed)


class _Compared(NamedTuple):
    """A site whose log-probabilities ``[N, *batch]`` are to be the same."""

    name: str
    accumulated: Tensor
    replayed: Tensor
    tolerance: float


class AuditMessenger(Messenger):
    """Replays a model on the values of a posterior's lineages and compares what it computes, see the top of this file.

    A model that forgets to thread a value through the barrier keeps using the values of dead particles after resampling. The evidence
    estimate does not show this; the audit does.

    :param Audited swept: of the sweep.
    :param int num_particles: N.
    """

    def __init__(self, swept: Audited, num_particles: int) -> None:
        super().__init__()
        self.swept, self.num_particles = swept, num_particles

    def __enter__(self) -> AuditMessenger:
        self.remaining = dict(self.swept.log_probs)
        self.compared: list[_Compared] = []
        self.num_leaves = self.num_barriers = 0
        self.ended_early = False  # all are done, and those that took more steps have no lineage
        self.number_format = 0.0  # the largest rounding that a site asked for
        self._arrange()
        super().__enter__()
        return self

    # the places of the particles ----------------------------------------------------------------------------------------------------

    def offsets(self) -> Tensor:
        """``[1 + barriers, *plates]``: how far the particles are from their own places after 0, 1, .. barriers. It changes with each
        barrier, is zero after the last, and never before with more than two particles. Neighbouring populations move differently."""
        n, last, populations = self.num_particles, self.swept.num_barriers, self.swept.populations
        left = torch.arange(last, -1, -1).view(-1, *(1,) * len(populations)).expand(-1, *populations)
        if n <= 2:
            return left % n
        numbers = torch.arange(populations.numel()).view(populations)
        return torch.where(left == 0, 0, 1 + (left - 1 + numbers) % (n - 1))

    def _arrange(self) -> None:
        offsets = self.offsets()[:, None]  # [barriers, 1, *plates]
        own = torch.arange(self.num_particles).view(-1, *(1,) * len(self.swept.populations))
        self._places = ((own + offsets) % self.num_particles).unbind()
        self._moves = ((own + offsets.diff(dim=0)) % self.num_particles).unbind()
        self._own = own.expand(self.num_particles, *self.swept.populations)

    @property
    def places(self) -> Tensor:
        """``[N, *plates]``: the particle of the sweep in each place."""
        return self._places[min(self.num_barriers, len(self._moves))]

    def moved(self, tensor: Tensor) -> Tensor:
        """``[N, *plates, ...]`` of the sweep with every particle in its present place; a copy, which the model may change."""
        places = self.places
        return take(tensor, places if places.device == tensor.device else places.to(tensor.device))

    def _pyro_barrier(self, msg: Any) -> None:
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        move = self._moves[self.num_barriers] if self.num_barriers < len(self._moves) else self._own
        self.num_barriers += 1
        msg["value"], msg["done"] = reorder(state, move), True
        done = particles_done(msg["value"])
        self.ended_early = done is not None and bool(done.all()) and self.num_barriers < self.swept.num_barriers

    # sites --------------------------------------------------------------------------------------------------------------------------

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
        replayed = msg["fn"].log_prob(msg["value"])
        if msg["mask"] is not None:
            replayed = scale_and_mask(replayed, mask=msg["mask"])
        tolerance = rounding_of(msg["fn"], msg["value"])
        self.number_format = max(self.number_format, tolerance)
        swept = self.remaining.pop(name, None)
        self.compared.append(_Compared(name, torch.zeros_like(replayed) if swept is None else self.moved(swept), replayed, tolerance))

    # comparisons --------------------------------------------------------------------------------------------------------------------

    def compare_log_probs(self) -> tuple[float, float]:
        """All sites so far, those of one shape together.

        :returns: the largest difference beyond what rounding explains, and the largest at all.
        :raises AuditError: naming the first site that differs.
        """
        alike: dict[tuple[Any, ...], list[_Compared]] = {}
        for each in self.compared:
            a, b = each.accumulated, each.replayed
            alike.setdefault((a.shape, b.shape, a.dtype, b.dtype, b.device), []).append(each)
        error = rounding = 0.0
        wrong: set[str] = set()
        for (_, shape, _, _, device), sites in alike.items():
            accumulated = torch.stack([each.accumulated for each in sites]).to(device, torch.float64)
            replayed = torch.stack([each.replayed for each in sites]).to(torch.float64)
            tolerance = torch.tensor([each.tolerance for each in sites], dtype=torch.float64, device=device).view(-1, *(1,) * len(shape))
            difference = torch.where(accumulated == replayed, 0.0, (accumulated - replayed).abs())
            relative = (tolerance / 8).clamp(min=_RTOL) * torch.where(accumulated.isfinite(), accumulated, 0.0).abs()
            excess = difference - (tolerance.clamp(min=_ATOL) + relative)
            error, rounding = max(error, float(excess.max())), max(rounding, float(difference.max()))
            if not error <= 0 or error != error:
                within = (excess <= 0).flatten(1).all(1)
                wrong |= {each.name for each, right in zip(sites, within.tolist(), strict=True) if not right}
        for each in self.compared:
            if each.name in wrong:
                raise AuditError(self._difference(each))
        return error, rounding

    @staticmethod
    def _difference(site: _Compared) -> str:
        accumulated, replayed = torch.broadcast_tensors(site.accumulated.to(site.replayed), site.replayed)
        largest = torch.where(accumulated == replayed, 0.0, (accumulated - replayed).abs()).nan_to_num(nan=torch.inf)
        where = tuple((largest == largest.max()).nonzero()[0].tolist())
        return (
            f"site {site.name!r}, particle {where[0] if len(where) == 1 else where}: the sweep accumulated a log-probability of "
            f"{accumulated[where]:.6g}, the replay of its lineage gives {replayed[where]:.6g}. {_CAUSES}"
        )

    def _compare_deterministic(self, name: str, value: Any) -> None:
        swept = self.swept.values.get(name)
        if isinstance(value, Tensor) and swept is not None and swept.shape == value.shape and len(value) == self.num_particles:
            self.compare(self.moved(swept), value, f"deterministic site {name!r}")

    def compare(self, swept: Any, replayed: Any, path: str) -> None:
        """
        :raises AuditError: if two values are not the same.
        """
        comparison = self.comparison()
        try:
            comparison.compare(swept, replayed, path)
        except Differs as differs:
            raise AuditError(
                f"{differs.path}: the sweep gave {differs.first}, the replay of its lineages gives {differs.second}. {_CAUSES}"
            ) from None
        self.num_leaves += comparison.num_leaves

    def comparison(self) -> Comparison:
        """How values are compared."""
        return Comparison(max(_ATOL, self.number_format), max(_RTOL, self.number_format))

    def compare_result(self, value: Any) -> None:
        """
        :raises AuditError: if the model returns something else than it did in the sweep.
        """
        if self.num_barriers != self.swept.num_barriers:
            raise AuditError(
                f"the sweep passed {self.swept.num_barriers} barriers, the replay of its lineages {self.num_barriers}: the model's "
                f"control flow depends on stale state. {_CAUSES}"
            )
        self.compare(self.swept.value, value, "value")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """A model that breaks on a stale value in the replay: what differed before is what to know."""
        try:
            yield
        except Exception as error:
            try:
                self.compare_log_probs()
            except AuditError as difference:
                raise difference from error
            raise

    def report(self) -> AuditReport:
        """
        :raises AuditError: if a log-probability differs, or the sweep met a site that the replay did not and that did not have
            probability one.
        """
        self.compared += [_Compared(name, swept, torch.zeros_like(swept), 0.0) for name, swept in self.remaining.items()]
        error, rounding = self.compare_log_probs()
        permuted = self.num_barriers if self.num_particles > 1 else 0
        return AuditReport(error, rounding, len(self.compared), self.num_leaves, sum(self.swept.resampled), permuted)


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
    auditor = AuditMessenger(swept, num_particles)
    with (
        auditor.judging(),
        isolated(),
        auditor,
        particle_plate(num_particles, max_plate_nesting),
        RandomnessMessenger() as randomness,
    ):
        value = model(*args, **kwargs)
        randomness.finish()
        if not auditor.ended_early:
            auditor.compare_result(value)
    if auditor.ended_early:  # once more, with all particles in their own places after this last barrier
        return audit(model, swept._replace(num_barriers=auditor.num_barriers), num_particles, max_plate_nesting, args, kwargs)
    return auditor.report()
