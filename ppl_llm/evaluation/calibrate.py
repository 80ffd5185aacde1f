"""Calibration of a reward model on the solutions of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..answers.voting import Answer
from ..reward.calibration import Calibration, SavedCalibration, identity_of, log_product
from .aggregators import Candidate, tally
from .metrics import Bin, auroc, brier, calibration_error, half_of, reliability
from .results import Results
from .votes import fingerprint

LABELS = ("gold", "agreement")


class Fit(NamedTuple):
    """A calibration and what it changes, on solutions that it was not fitted on.

    :ivar Calibration calibration: of the log-odds as they are recorded.
    :ivar int num_solutions: that it was fitted on.
    :ivar int num_held_out: that the figures are from.
    :ivar tuple brier: mean squared error of P(all steps right) as a prediction of a right answer, before and after.
    :ivar tuple error: expected calibration error, before and after.
    :ivar tuple auroc: probability that a right solution is ranked above a wrong one, before and after.
    """

    calibration: Calibration
    num_solutions: int
    num_held_out: int
    brier: tuple[float, float]
    error: tuple[float, float]
    auroc: tuple[float, float]
    before: list[Bin]
    after: list[Bin]


def calibrate(results: Results, labels: str = "gold") -> Fit:
    """Fit temperature and bias of the step log-odds so that the product of the step probabilities predicts a right answer.

    A random half of the problems, always the same, is for fitting, the rest for the figures.

    :param str labels: ``gold``, or ``agreement``: the share of the other samples of the same problem that give the same answer, for
        problems without gold answers.
    :raises ValueError: for other labels, or a run without independent samples.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    halves: tuple[list[tuple[Candidate, float]], list[tuple[Candidate, float]]] = ([], [])
    half = half_of(results.problems)
    for (problem, _), pool in results.samples.items():
        halves[half[problem]].extend(_labelled(pool, partial(results.is_right, problem) if labels == "gold" else None))
    if not halves[0] or not halves[1]:
        raise ValueError("calibration needs the independent samples of at least two problems; add --methods importance to the run")
    z, real, y = _tensors(halves[0])
    fitted = Calibration.fit(z, y, real)
    z, real, y = _tensors(halves[1])
    stated = [log_product(each(z), real).exp() for each in (Calibration(), fitted)]
    bins = [reliability(p, y) for p in stated]
    return Fit(
        fitted,
        len(halves[0]),
        len(halves[1]),
        (brier(stated[0], y), brier(stated[1], y)),
        (calibration_error(bins[0]), calibration_error(bins[1])),
        (auroc(stated[0], y > 0.5), auroc(stated[1], y > 0.5)),
        bins[0],
        bins[1],
    )


def saved(fit: Fit, results: Results, run: str, labels: str, prm: str | Path | None = None) -> SavedCalibration:
    """A fit as it is kept in a file, for the reward model of the run.

    Where the run itself was calibrated, the map is from the raw log-odds through both.

    :param str run: name of the run.
    :param prm: where the reward model is now, if not where the run found it.
    :raises ValueError: for records that do not say whose scores they hold.
    :raises OSError: if the reward model is not found.
    """
    name = str(prm if prm is not None else results.configuration.get("prm", ""))
    if not name:
        raise ValueError("the run does not say which reward model it used; name it with --prm")
    earlier = results.configuration.get("calibration")
    whole = fit.calibration if earlier is None else fit.calibration.after(Calibration(*earlier))
    about: dict[str, Any] = {
        "run": run,
        "configuration": fingerprint(results.configuration),
        "labels": labels,
        "solutions": fit.num_solutions,
        "lm": results.configuration.get("lm"),
    }
    held_out: dict[str, Any] = {
        "solutions": fit.num_held_out,
        "brier": fit.brier,
        "calibration_error": fit.error,
        "auroc": fit.auroc,
        "reliability": {"before": fit.before, "after": fit.after},
    }
    return SavedCalibration(whole, name, identity_of(name), about, held_out)


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
