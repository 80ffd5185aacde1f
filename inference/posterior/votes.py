"""Votes for answers, and how many of them there are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .equivalence_classes import Equivalent, representatives


@dataclass(frozen=True)
class Votes:
    """Independent votes with weights, in the order in which they were drawn.

    Of J votes with the shares m_j(a) of the answers and the weights u_j::

        W(a) = sum_j u_j m_j(a) / sum_j u_j,    J_eff = (sum_j u_j)^2 / sum_j u_j^2,    count(a) = J_eff W(a)

    With equal weights and undivided votes that is the number of votes for each answer; otherwise J_eff is Kish's effective sample size.

    :ivar tuple shares: of each vote, a share for each answer that it is for; ``None`` stands for no answer.
    :ivar tuple log_weights: of each vote.
    """

    shares: tuple[Mapping[Hashable, float], ...]
    log_weights: tuple[float, ...]

    @cached_property
    def _weights(self) -> list[float]:
        top = max(self.log_weights, default=-math.inf)
        return [math.exp(log_weight - top) if top > -math.inf else 0.0 for log_weight in self.log_weights]

    @cached_property
    def total(self) -> float:
        """J_eff."""
        squares = math.fsum(u * u for u in self._weights)
        return math.fsum(self._weights) ** 2 / squares if squares else 0.0

    @cached_property
    def counts(self) -> dict[Hashable, float]:
        """Effective number of votes for each answer, the most first; those for no answer are left out."""
        mass: dict[Hashable, float] = {}
        for weight, shares in zip(self._weights, self.shares, strict=True):
            for answer, share in shares.items():
                if answer is not None and weight * share > 0:
                    mass[answer] = mass.get(answer, 0.0) + weight * share
        scale = self.total / math.fsum(self._weights) if mass else 0.0
        return {answer: scale * m for answer, m in sorted(mass.items(), key=lambda item: -item[1])}

    @cached_property
    def row(self) -> list[Hashable]:
        """The answer of each vote that has a weight; the largest share of one that is divided."""
        voting = [shares for shares, weight in zip(self.shares, self._weights, strict=True) if weight > 0]
        return [max(shares, key=lambda answer: shares[answer]) for shares in voting]

    def pooled(self, equivalent: Equivalent | None) -> Votes:
        """With answers that count as the same under their representative."""
        if equivalent is None:
            return self
        chosen = representatives({answer for shares in self.shares for answer in shares}, equivalent)

        def together(shares: Mapping[Hashable, float]) -> Mapping[Hashable, float]:
            found: dict[Hashable, float] = {}
            for answer, share in shares.items():
                found[chosen[answer]] = found.get(chosen[answer], 0.0) + share
            return found

        return Votes(tuple(map(together, self.shares)), self.log_weights)
