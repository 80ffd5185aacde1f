"""A reward model whose log-odds are mapped to honest ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..context import Context
from .protocol import RewardModel


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
    def fit(cls, log_odds: Tensor, labels: Tensor) -> Calibration:
        """Maximum likelihood of a logistic regression of labels on log-odds, by L-BFGS.

        Labels may be probabilities; without gold labels, agreement with the majority answer serves. A faint prior (a tenth of an
        observation) keeps separable data finite.

        :param Tensor log_odds: ``[M]``.
        :param Tensor labels: ``[M]`` in [0, 1].
        :raises ValueError: for data of different sizes, without both classes, or whose scores do not go up with the labels.
        """
        z, y = log_odds.flatten().to(torch.float64), labels.flatten().to(torch.float64)
        if len(z) != len(y) or len(z) < 2:
            raise ValueError(f"calibration needs as many labels as log-odds and at least 2, got {len(z)} and {len(y)}")
        if not (y.min() < 0.5 < y.max()):
            raise ValueError("calibration needs right and wrong steps; all labels are alike")
        if not torch.isfinite(z).all():
            raise ValueError("the log-odds hold nan or infinite values")
        scale = z.std().clamp(min=1e-6)
        features = torch.stack([z / scale, torch.ones_like(z)], -1)
        start = torch.stack([scale, torch.zeros_like(scale)])
        slope, bias = _logistic(features, y, start)
        if not slope > 0:
            raise ValueError("the log-odds do not rise with the labels: this reward model cannot be calibrated, only replaced")
        return cls(float(scale / slope), float(bias))

    def save(self, path: str | Path) -> None:
        """As JSON."""
        Path(path).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """
        :raises ValueError: for a file that holds none.
        """
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(path)!r} does not hold a calibration: {error}") from error


def _logistic(features: Tensor, labels: Tensor, centre: Tensor) -> Tensor:
    """Penalised logistic regression: a tenth of an observation pulls towards ``centre``."""
    weights = torch.zeros_like(centre, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        misfit = torch.nn.functional.binary_cross_entropy_with_logits(features @ weights, labels, reduction="sum")
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
