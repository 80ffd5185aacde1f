"""Reward models whose errors are known, for demo problems."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.demo.checker import check_steps, parse
from ppl_llm.demo.problems import Problem

PRIOR_LOG_ODDS = 1.5
"""Of a right step before its score is known: about what the demo language model's steps have on problems of all levels."""

JUDGES = ("step", "prefix")


@dataclass(frozen=True)
class Errors:
    """How a synthetic reward model errs.

    With y = +1 for what is right and -1 for what is wrong, a score is ``sharpness * (y d^2 / 2 + d e_t + prior)``: at sharpness 1 the
    log-odds of an observer who sees y through unit Gaussian noise e_t, with the separation d that gives the AUROC. Noise along a solution
    is ``e_t = repeat * e_{t-1} + sqrt(1 - repeat^2) * n_t``, its innovations n_t being a function of the text up to step t: the same
    solution has the same scores whenever it is asked about, and solutions share their errors up to where they part.

    :ivar float auroc: of right against wrong steps, 0.5 to 1.
    :ivar float repeat: correlation of the errors of neighbouring steps, 0 to 1.
    :ivar float sharpness: 1 is calibrated, above 1 overconfident, below 1 underconfident.
    :ivar str judges: ``step``, whether the step by itself is right; ``prefix``, whether all steps so far are.
    :ivar float fooled: share of wrong steps that get the score of a right one with e_t = 2 whenever they are written: blind spots, which
        the AUROC does not count.
    :raises ValueError: for values out of range.
    """

    auroc: float
    repeat: float = 0.0
    sharpness: float = 1.0
    judges: str = "step"
    fooled: float = 0.0

    def __post_init__(self) -> None:
        if not 0.5 < self.auroc < 1:
            raise ValueError(f"auroc must lie between 0.5 and 1, got {self.auroc!r}")
        if not 0 <= self.repeat <= 1:
            raise ValueError(f"repeat must lie in [0, 1], got {self.repeat!r}")
        if not self.sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {self.sharpness!r}")
        if not 0 <= self.fooled <= 1:
            raise ValueError(f"fooled must lie in [0, 1], got {self.fooled!r}")
        if self.judges not in JUDGES:
            raise ValueError(f"judges must be one of {', '.join(JUDGES)}, got {self.judges!r}")

    @property
    def separation(self) -> float:
        """d, in standard deviations of the noise: AUROC = Phi(d / sqrt 2)."""
        return math.sqrt(2) * NormalDist().inv_cdf(self.auroc)


class SyntheticReward:
    """Labels of the demo task's checker behind noise (a :class:`~ppl_llm.RewardModel` for contexts of one batch dimension).

    :param Errors errors: how it errs.
    :param int seed: of the noise.
    """

    def __init__(self, errors: Errors, seed: int = 0) -> None:
        self.errors, self.seed = errors, seed

    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds ``[A, T]``."""
        rows = [self.scores(problem, steps) for problem, steps in zip(context.problem, context.steps, strict=True)]
        return torch.tensor([row + row[-1:] * (context.num_steps - len(row)) for row in rows]).view(len(rows), context.num_steps)

    def scores(self, problem: str, steps: list[str]) -> list[float]:
        """The log-odds of each step of a solution.

        :param str problem: text of a demo problem.
        :param list steps: as in :attr:`~ppl_llm.context.Context.steps`.
        """
        errors, d = self.errors, self.errors.separation
        noise, scores, so_far = 0.0, [], True
        for t, right in enumerate(labels(problem, steps)):
            so_far = so_far and right
            innovation = self._normal(problem, "".join(steps[: t + 1]))
            noise = innovation if t == 0 else errors.repeat * noise + math.sqrt(1 - errors.repeat**2) * innovation
            y = 1 if (right if errors.judges == "step" else so_far) else -1
            score = y * d * d / 2 + d * noise + PRIOR_LOG_ODDS
            if y < 0 and self._uniform("fooled", problem, steps[t]) < errors.fooled:
                score = d * d / 2 + 2 * d + PRIOR_LOG_ODDS
            scores.append(errors.sharpness * score)
        return scores

    def _normal(self, problem: str, text: str) -> float:
        return NormalDist().inv_cdf(self._uniform(problem, text))

    def _uniform(self, *texts: str) -> float:
        digest = hashlib.blake2b("/".join([str(self.seed), *texts]).encode(), digest_size=8).digest()
        return (int.from_bytes(digest) + 0.5) / 2**64


def labels(problem: str, steps: list[str]) -> list[bool]:
    """Whether each step is right, by the demo task's checker."""
    return check_steps(_parsed(problem), steps)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Problem:
    return parse(text)
