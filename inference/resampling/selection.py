"""Resampling in proportion to something else than the weights."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..particles.weights import Weights


class Selection(Protocol):
    """Weights V by which ancestors are drawn, any function of the particle system: annealed weights, or a look-ahead.

    With ``keeps_target`` the particles keep the residual weights ``w / (N V)``, so that every estimate stays unbiased.

    :ivar bool keeps_target: ``False`` drops the residual weights, as published heuristics do: the evidence is then biased.
    """

    @property
    def keeps_target(self) -> bool: ...

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        """
        :param Weights weights: ``[N, *plates]``, before resampling.
        :param state: what the model passed to the barrier.
        :param int step: barriers before this one.
        :returns: log V ``[N, *plates]``, unnormalised; finite wherever the weight is positive.
        """
        ...
