"""A twist from the scores that a run has recorded."""

from __future__ import annotations

import math

import torch

from ..reward.base import RewardModel
from ..reward.prefix_value import PrefixValue
from .results import Results


def fit_twist(results: Results, prm: RewardModel) -> PrefixValue:
    """P(right | scores so far, position) from the independent samples of a run.

    Example::

        value = fit_twist(Results.read("runs/first"), prm)
        SMC(reasoning(lm, Twist(value, verifier), preset="twisted"), 16).run(problem)

    :param RewardModel prm: the run's own, whose scores are in its records.
    :raises ValueError: for a run without independent samples that have scores, or with right or wrong ones only.
    """
    known = [(c, results.is_right(problem, c.answer)) for (problem, _), pool in results.samples.items() for c in pool if c.step_log_odds]
    if not known:
        raise ValueError("the run holds no independent samples with scores of their steps; run evaluate with importance and a reward")
    width = max(len(candidate.step_log_odds) for candidate, _ in known)
    z = torch.tensor([[*c.step_log_odds, *[math.nan] * (width - len(c.step_log_odds))] for c, _ in known], dtype=torch.float64)
    return PrefixValue.fit(prm, z, ~z.isnan(), torch.tensor([float(right) for _, right in known]))
