"""Resampling in proportion to something else than the weights."""

from __future__ import annotations

from typing import Any, Protocol

import torch
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


def checked_selection(selection: Selection, weights: Weights, state: Any, step: int, chosen: Tensor) -> Weights:
    """V at a barrier that resamples the populations ``chosen [*plates]``.

    :raises ValueError: where V is zero, infinite or nan at a particle of positive weight: it could not be drawn, and no residual weight
        would make up for it.
    """
    log_v = selection(weights, state, step)
    name = getattr(selection, "__name__", type(selection).__name__)
    if log_v.shape != weights.log_weights.shape:
        expected = tuple(weights.log_weights.shape)
        raise ValueError(f"selection {name} gave log-weights of shape {tuple(log_v.shape)}, expected {expected} (particles, plates)")
    wrong = chosen & (weights.log_weights > -torch.inf) & ~log_v.isfinite()
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"selection {name} gave particle {where[0] if len(where) == 1 else where} of positive weight the log-weight "
            f"{float(log_v[where]):.3g} at barrier {step}: it must be finite wherever the weight is positive. Give particles that are "
            "to be left out a small weight instead; their residual weights make up for it"
        )
    return Weights(log_v if weights.alive else torch.where(weights.dead, 0.0, log_v))
