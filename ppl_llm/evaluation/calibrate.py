"""Calibration of a reward model on the solutions of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..answers import Answer
from ..reward.calibrated_reward import Calibration
from .aggregators import Candidate, tally
from .metrics import Bin, brier, calibration_error, reliability
from .results import Results

LABELS = ("gold", "agreement")


class Fit(NamedTuple):
    """A calibration and what it changes, on solutions that it was not fitted on.

    :ivar tuple brier: mean squared error of P(all steps right) as a prediction of a right answer, before and after.
    :ivar tuple error: expected calibration error, before and after.
    """

    calibration: Calibration
    num_solutions: int
    brier: tuple[float, float]
    error: tuple[float, float]
    before: list[Bin]
    after: list[Bin]


def calibrate(results: Results, labels: str = "gold") -> Fit:
    """Fit temperature and bias of the step log-odds so that the product of the step probabilities predicts a right answer.

    Half of the problems (every other one) are for fitting, the rest for the figures.

    :param str labels: ``gold``, or ``agreement``: the share of the other samples of the same problem that give the same answer, for
        problems without gold answers.
    :raises ValueError: for other labels, or a run without independent samples.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    halves: tuple[list[tuple[Candidate, float]], list[tuple[Candidate, float]]] = ([], [])
    for (problem, _), pool in results.samples.items():
        known = _labelled(pool, partial(results.is_right, problem) if labels == "gold" else None)
        halves[results.problems.index(problem) % 2].extend(known)
    if not halves[0] or not halves[1]:
        raise ValueError("calibration needs the independent samples of at least two problems; add --methods importance to the run")
    fitted = fit_solutions(*_tensors(halves[0]))
    z, real, y = _tensors(halves[1])
    before, after = _log_product(z, real, Calibration()).exp(), _log_product(z, real, fitted).exp()
    bins = reliability(before, y), reliability(after, y)
    return Fit(fitted, len(halves[0]), (brier(before, y), brier(after, y)), (calibration_error(bins[0]), calibration_error(bins[1])), *bins)


def fit_solutions(z: Tensor, real: Tensor, labels: Tensor) -> Calibration:
    """Maximum likelihood of labels of whole solutions, where the probability of a right one is the product over its steps.

    :param Tensor z: ``[M, T]`` log-odds of the steps.
    :param Tensor real: ``[M, T]`` steps that exist.
    :param Tensor labels: ``[M]`` in [0, 1].
    :raises ValueError: if all labels are alike, or the scores do not rise with them.
    """
    if not (labels.min() < 0.5 < labels.max()):
        raise ValueError("calibration needs right and wrong solutions; all labels are alike")
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # slope - 1, bias
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_p = torch.where(real, logsigmoid(z * (1 + parameters[0]) + parameters[1]), 0.0).sum(-1).clamp(max=-1e-9)
        misfit = -(labels * log_p + (1 - labels) * torch.log(-torch.expm1(log_p))).sum() + 0.05 * parameters.square().sum()
        misfit.backward()
        return misfit

    with torch.enable_grad():
        optimizer.step(loss)
    stretch, bias = parameters.tolist()
    slope = 1 + stretch
    if not slope > 0:
        raise ValueError("the scores do not rise with the labels: this reward model cannot be calibrated, only replaced")
    return Calibration(1 / slope, bias)


def _labelled(pool: Sequence[Candidate], is_right: Callable[[Answer], bool] | None) -> list[tuple[Candidate, float]]:
    scored = [candidate for candidate in pool if candidate.step_log_odds]
    if is_right is not None:
        return [(candidate, float(is_right(candidate.answer))) for candidate in scored]
    votes = tally(scored, lambda candidate: 1.0)
    if len(scored) < 2:
        return []
    return [(c, (votes[c.answer] - 1) / (len(scored) - 1) if c.answer is not None else 0.0) for c in scored]


def _tensors(known: Sequence[tuple[Candidate, float]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(candidate.step_log_odds) for candidate, _ in known)
    rows = [[*candidate.step_log_odds, *[math.nan] * (width - len(candidate.step_log_odds))] for candidate, _ in known]
    z = torch.tensor(rows, dtype=torch.float64)
    return z.nan_to_num(0.0), ~z.isnan(), torch.tensor([label for _, label in known], dtype=torch.float64)


def _log_product(z: Tensor, real: Tensor, calibration: Calibration) -> Tensor:
    return torch.where(real, logsigmoid(calibration(z)), 0.0).sum(-1)
