"""Importance weights of a population of particles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGEST = 1e300


class Weights:
    """Immutable log-weights in float64, particle dimension first.

    The convention of the whole package: :attr:`log_mean` is at any time the estimate of the log evidence, because resampling sets the
    weights to their mean and never to one.

    :param Tensor log_weights: ``[N, *plates]``, unnormalised.
    """

    __slots__ = ("_alive", "_ess", "_log_mean", "log_weights")

    def __init__(self, log_weights: Tensor) -> None:
        self.log_weights = log_weights if log_weights.dtype is torch.float64 else log_weights.to(torch.float64)
        self._log_mean: Tensor | None = None
        self._ess: Tensor | None = None
        self._alive: bool | None = None

    @property
    def num_particles(self) -> int:
        return self.log_weights.shape[0]

    @property
    def log_mean(self) -> Tensor:
        """``[*plates]``: log of the mean weight."""
        if self._log_mean is None:
            top = self.log_weights.amax(0).clamp(-_LARGEST, _LARGEST)  # finite, so that the sum is 0 where every weight is
            self._log_mean = (self.log_weights - top).exp().sum(0).log() + (top - math.log(self.num_particles))
        return self._log_mean

    @property
    def normalized(self) -> Tensor:
        """``[N, *plates]``: weights that sum to one over the particles; 0 in a dead population."""
        softmax = self.log_weights.softmax(0)
        return softmax if self.alive else torch.where(self.dead, 0.0, softmax)

    @property
    def ess(self) -> Tensor:
        """``[*plates]``: effective sample size ``1 / sum W^2`` (Kong, Liu & Wong, 1994); 0 for a dead population."""
        if self._ess is None:
            softmax = self.log_weights.softmax(0)
            ess = torch.linalg.vecdot(softmax, softmax, dim=0).reciprocal()
            self._alive = not (math.isnan(ess.item()) if ess.numel() == 1 else bool(ess.isnan().any()))
            self._ess = ess if self._alive else torch.where(self.dead, 0.0, ess)
        return self._ess

    @property
    def dead(self) -> Tensor:
        """``[*plates]``: populations whose every weight is zero."""
        return self.log_mean == -torch.inf

    @property
    def alive(self) -> bool:
        """Whether every population has a mean weight that is neither zero nor infinite nor nan."""
        if self._alive is None:
            _ = self.ess
        assert self._alive is not None
        return self._alive

    @property
    def to_draw_by(self) -> Tensor:
        """``[N, *plates]``: log-weights to draw particles by. Those of a dead population, from which nothing is to be drawn, are alike."""
        return self.log_weights if self.alive else torch.where(self.dead, 0.0, self.log_weights)

    def add(self, log_increment: Tensor) -> Weights:
        """Multiply the weights by ``exp(log_increment)``."""
        return Weights(self.log_weights + log_increment)

    def set_to_mean(self, where: Tensor) -> Weights:
        """Weights after resampling the populations ``where [*plates]`` in proportion to them."""
        return Weights(torch.where(where, self.log_mean, self.log_weights))

    def divided_by(self, selection: Weights, ancestors: Tensor, where: Tensor) -> Weights:
        """Weights after resampling the populations ``where`` in proportion to other weights V: ``w_a / (N V_a)``.

        :param Weights selection: in proportion to which the ancestors ``[N, *plates]`` were drawn.
        """
        log_ratio = self.log_weights - selection.log_weights + selection.log_mean
        return Weights(torch.where(where, log_ratio.gather(0, ancestors), self.log_weights))

    def __repr__(self) -> str:
        return f"Weights({self.num_particles} particles, plates {tuple(self.log_weights.shape[1:])})"
