"""A reward model whose log-odds are mapped to honest ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..context import Context
from .base import RewardModel


@dataclass(frozen=True)
class Calibration:
    """``z -> z / temperature + bias`` on log-odds (Platt scaling).

    :ivar float temperature: above 1 makes an overconfident model modest.
    :ivar float bias: added to the log-odds.
    :raises ValueError: for a temperature that is not positive.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")

    def __call__(self, log_odds: Tensor) -> Tensor:
        return log_odds / self.temperature + self.bias

    @classmethod
    def fit(cls, log_odds: Tensor, labels: Tensor, real: Tensor | None = None) -> Calibration:
        """Maximum likelihood by L-BFGS: of labels of steps, each right with the probability that its calibrated log-odds state, or of
        labels of solutions, each right with the product of the probabilities of its steps.

        Labels may be probabilities; without gold labels, agreement with the majority answer serves. A faint prior (a tenth of an
        observation) keeps separable data finite.

        :param Tensor log_odds: ``[M]`` of steps, or ``[M, T]`` of the steps of solutions.
        :param Tensor labels: ``[M]`` in [0, 1].
        :param Tensor real: ``[M, T]``, steps that exist; by default all.
        :raises ValueError: for data of different sizes, without both classes, or whose scores do not go up with the labels.
        """
        y = labels.flatten().to(torch.float64)
        z = log_odds.to(torch.float64).reshape(len(log_odds), -1)
        real = torch.ones_like(z, dtype=torch.bool) if real is None else real
        if len(z) != len(y) or len(z) < 2:
            raise ValueError(f"calibration needs as many labels as log-odds and at least 2, got {len(z)} and {len(y)}")
        if not y.min() < y.max():
            raise ValueError("calibration needs right and wrong examples; all labels are alike")
        if not torch.isfinite(z[real]).all():
            raise ValueError("the log-odds hold nan or infinite values")
        scale = z[real].std().clamp(min=1e-6)
        slope, bias = _maximum_likelihood(torch.where(real, z, 0.0) / scale, real, y, torch.stack([scale, torch.zeros_like(scale)]))
        if not slope > 0:
            raise ValueError("the log-odds do not rise with the labels: this reward model cannot be calibrated, only replaced")
        return cls(float(scale / slope), float(bias))

    def after(self, first: Calibration) -> Calibration:
        """The map that does ``first`` and then this."""
        return Calibration(self.temperature * first.temperature, first.bias / self.temperature + self.bias)


def log_product(log_odds: Tensor, real: Tensor) -> Tensor:
    """``[M]``: log-probability that all steps ``[M, T]`` are right, of those that exist."""
    return torch.where(real, logsigmoid(log_odds), 0.0).sum(-1)


def _maximum_likelihood(z: Tensor, real: Tensor, labels: Tensor, centre: Tensor) -> Tensor:
    """Slope and bias; a tenth of an observation pulls towards ``centre``."""
    weights = centre.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_p = log_product(z * weights[0] + weights[1], real).clamp(max=-1e-300)
        misfit = -(labels * log_p + (1 - labels) * torch.log(-torch.expm1(log_p))).sum()
        value = misfit + 0.05 * (weights - centre).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


class CalibratedReward:
    """A reward model behind a :class:`Calibration`.

    :param RewardModel prm: gives the raw log-odds.
    :param Calibration calibration: applied to every step.
    """

    def __init__(self, prm: RewardModel, calibration: Calibration) -> None:
        self.prm, self.calibration = prm, calibration

    def step_log_odds(self, context: Context) -> Tensor:
        """Calibrated log-odds ``[*batch, T]``; see :class:`~ppl_llm.RewardModel`."""
        return self.calibration(self.prm.step_log_odds(context))

    def whole_log_odds(self, context: Context) -> Tensor:
        """Calibrated log-odds ``[*batch]`` of whole answers.

        :raises AttributeError: if the reward model scores steps only.
        """
        return self.calibration(self.prm.whole_log_odds(context))  # type: ignore[attr-defined]

    def release_caches(self) -> None:
        """Free what the reward model caches, if it does."""
        if callable(release := getattr(self.prm, "release_caches", None)):
            release()
