"""What the viewer reads of a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ..particles.history import History
from ..particles.trajectory import Trajectory
from ..particles.weighted_particles import WeightedParticles


class Viewable(Protocol):
    """The side of a posterior that figures, tables and pages are made of; :class:`~ppl_llm.inference.ParticlePosterior` has it."""

    particles: WeightedParticles

    @property
    def num_particles(self) -> int: ...

    @property
    def complete(self) -> bool: ...

    @property
    def estimates_posterior(self) -> bool: ...

    @property
    def exact(self) -> bool: ...

    @property
    def no_evidence(self) -> str | None: ...

    @property
    def unit(self) -> str: ...

    @property
    def parts(self) -> Sequence[Viewable]: ...

    @property
    def part_name(self) -> str: ...

    @property
    def parts_at(self) -> str: ...

    @property
    def part_numbers(self) -> list[int]: ...

    @property
    def unbiased(self) -> bool: ...

    @property
    def iterations(self) -> Sequence[Viewable]: ...

    @property
    def value(self) -> Any: ...

    @property
    def log_weights(self) -> Tensor: ...

    @property
    def log_evidence(self) -> Tensor: ...

    def require_alive(self) -> None: ...

    @property
    def sites(self) -> dict[str, Tensor]: ...

    @property
    def site_log_probs(self) -> dict[str, Tensor]: ...

    @property
    def site_scores(self) -> dict[str, Tensor]: ...

    @property
    def history(self) -> History: ...

    def particle(self, index: tuple[int, ...]) -> Any: ...

    def draw(self) -> Trajectory: ...

    def marginal(self, fn: Any = None) -> Any: ...

    def answers(self) -> Any: ...
