"""Importance weights of a population of particles."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Weights:
    """Immutable log-weights in float64, particle dimension first.

    The convention of the whole package: :attr:`log_mean` is at any time the estimate of the log evidence, because resampling sets the
    weights to their mean and never to one.

    :param Tensor log_weights: ``[N, *plates]``, unnormalised.
    """

    __slots__ = ("log_weights",)

    def __init__(self, log_weights: Tensor) -> None:
        self.log_weights = log_weights.to(torch.float64)

    @property
    def num_particles(self) -> int:
        return self.log_weights.shape[0]

    @property
    def log_mean(self) -> Tensor:
        """``[*plates]``: log of the mean weight."""
        return self.log_weights.logsumexp(0) - math.log(self.num_particles)

    @property
    def normalized(self) -> Tensor:
        """``[N, *plates]``: weights that sum to one over the particles; nan where every weight is zero."""
        return self.log_weights.softmax(0)

    @property
    def ess(self) -> Tensor:
        """``[*plates]``: effective sample size ``1 / sum W^2`` (Kong, Liu & Wong, 1994)."""
        return 1.0 / self.normalized.square().sum(0)

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
