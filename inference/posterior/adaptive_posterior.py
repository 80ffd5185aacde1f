"""What a run with an adaptive budget returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from .chain_posterior import pooled_particles
from .particle_posterior import ParticlePosterior
from .search_posterior import SearchPosterior
from .votes import Votes

_REASON = (
    "it stops when its rule is content with what was drawn, and the mean weight of a number of particles that depends on them is biased"
)


class AdaptivePosterior(SearchPosterior):
    """The candidates of all batches of :class:`Adaptive` on one problem, as many as it took.

    Votes are those of the algorithm inside: a majority of :class:`SelfConsistency`, the best of :class:`BestOfN`, weights of
    :class:`Importance` and of the filters of :class:`SMC`, pooled by their evidence.

    :param list batches: posteriors of one problem each.
    :param list log_weights: ``[N_i]`` of each, on a common scale.
    :ivar list batches: the same; also ``parts``.
    :param votes: gives the independent votes when they are asked for.
    :ivar list rewards: product of the factors of each candidate, for algorithms whose candidates are independent and scored; else empty.
    :ivar bool stopped: whether the rule ended the run, and not the budget.
    :ivar int num_drawn: particles paid for: those here, and those of batches in which every particle had weight zero.
    """

    unit: ClassVar[str] = "batch"
    part_name: ClassVar[str] = "batch"
    parts_at: ClassVar[str] = "batches"
    unbiased: ClassVar[bool] = False

    def __init__(
        self,
        batches: Sequence[ParticlePosterior],
        log_weights: Sequence[Tensor],
        *,
        votes: Callable[[], Votes],
        rewards: Sequence[float] = (),
        scores: Tensor | None = None,
        algorithm: str = "search",
        decisive: bool = False,
        num_drawn: int = 0,
    ) -> None:
        particles = pooled_particles(batches, log_weights)
        super().__init__(particles, scores=scores, method=f"adaptive {algorithm}", reason=_REASON, decisive=decisive)
        self.batches = self.parts = list(batches)
        self._votes, self.rewards, self.num_drawn = votes, list(rewards), num_drawn
        self.stopped = False
        self.complete = all(each.complete for each in batches)

    @cached_property
    def votes(self) -> Votes:
        """The independent votes: particles, or filters, whose particles share ancestors.

        :raises TypeError: for a model whose return value has no answers, where :class:`Adaptive` was given no function for them.
        """
        return self._votes()

    def diagnostics(self) -> dict[str, Any]:
        """As for every search, and ``batches``, ``num_drawn``, and ``stopped``: whether the rule ended the run."""
        return {**super().diagnostics(), "batches": len(self.batches), "num_drawn": self.num_drawn, "stopped": self.stopped}

    def _by_unit(self) -> dict[str, list[Any]]:
        particles = [each.particles for each in self.batches]
        ess = [each.weights.ess[each.public].tolist() for each in particles]
        return {"ess": ess, "resampled": [any(bool(record.resampled.any()) for record in each.records) for each in particles]}

    def __repr__(self) -> str:
        end = "stopped by its rule" if self.stopped else "to the end of the budget" if self.complete else "interrupted"
        return f"AdaptivePosterior({self.method}: {self.num_particles} candidates in {len(self.batches)} batches, {end})"
