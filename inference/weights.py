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

    __slots__ = ("_log_mean", "_shifted", "log_weights")

    def __init__(self, log_weights: Tensor) -> None:
        self.log_weights = log_weights if log_weights.dtype is torch.float64 else log_weights.to(torch.float64)
        self._log_mean: Tensor | None = None
        self._shifted: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def num_particles(self) -> int:
        return self.log_weights.shape[0]

    @property
    def log_mean(self) -> Tensor:
        """``[*plates]``: log of the mean weight."""
        if self._log_mean is None:
            top, _, total = self._relative
            self._log_mean = total.log() + (top - math.log(self.num_particles))
        return self._log_mean

    @property
    def _relative(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log of the largest weight, the weights relative to it, and their sum: what log mean and ESS share."""
        if self._shifted is None:
            top = self.log_weights.amax(0).clamp(-_LARGEST, _LARGEST)  # finite, so that the sum is 0 where every weight is
            relative = (self.log_weights - top).exp()
            self._shifted = top, relative, relative.sum(0)
        return self._shifted

    @property
    def normalized(self) -> Tensor:
        """``[N, *plates]``: weights that sum to one over the particles; nan where every weight is zero."""
        return self.log_weights.softmax(0)

    @property
    def ess(self) -> Tensor:
        """``[*plates]``: effective sample size ``1 / sum W^2`` (Kong, Liu & Wong, 1994)."""
        _, relative, total = self._relative
        return total.square() / relative.square().sum(0)

    @property
    def alive(self) -> bool:
        """Whether every population has a mean weight that is neither zero nor infinite nor nan."""
        total = self._relative[2]
        return 0.0 < total.item() < math.inf if total.numel() == 1 else bool(((total > 0) & (total < math.inf)).all())

    def add(self, log_increment: Tensor) -> Weights:
        """Multiply the weights by ``exp(log_increment)``."""
        return Weights(self.log_weights + log_increment)

    def set_to_mean(self, where: Tensor) -> Weights:
        """Weights after resampling the populations ``where [*plates]`` in proportion to them."""
        return Weights(torch.where(where, self.log_mean.expand_as(self.log_weights), self.log_weights))

    def divided_by(self, selection: Weights, ancestors: Tensor, where: Tensor) -> Weights:
        """Weights after resampling the populations ``where`` in proportion to other weights V: ``w_a / (N V_a)``.

        :param Weights selection: in proportion to which the ancestors ``[N, *plates]`` were drawn.
        """
        log_ratio = self.log_weights - selection.log_weights + selection.log_mean
        return Weights(torch.where(where, log_ratio.gather(0, ancestors), self.log_weights))

    def __repr__(self) -> str:
        return f"Weights({self.num_particles} particles, plates {tuple(self.log_weights.shape[1:])})"
