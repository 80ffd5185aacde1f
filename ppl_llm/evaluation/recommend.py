"""Which method to run at which budget, by how hard a problem looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Array, Interval, mean_over_problems, problem_means, proportion
from .metrics import half_of, out_of
from .results import Results

NUM_CLASSES = 3


@dataclass(frozen=True)
class Choice:
    """The best that a run's records show for a class of problems.

    :ivar tuple agreement: range of the class: the share of the most frequent answer among independent samples.
    :ivar str run: name of the run, which stands for models and preset.
    :ivar float tokens: mean tokens sampled per problem.
    :ivar Interval accuracy: estimated on problems of the class that the choice was not made on, see :func:`recommend`; nan for a class
        of one problem.
    :ivar str missing: ``n of N problems`` that the accuracy is over, where some were given up.
    """

    agreement: tuple[float, float]
    num_problems: int
    run: str
    method: str
    budget: int
    tokens: float
    accuracy: Interval
    missing: str = ""


def agreement(results: Results) -> dict[str, float]:
    """For each problem, the share of its most frequent answer among the independent samples of all seeds: no gold answer is looked at.

    :raises ValueError: if there are none.
    """
    pools: dict[str, Counter[str]] = {}
    for (problem, _), pool in results.samples.items():
        pools.setdefault(problem, Counter()).update("" if c.answer is None else str(c.answer) for c in pool)
    if not pools:
        raise ValueError("difficulty is read off independent samples, which this run lacks; add --methods importance to it")
    return {problem: max((n for a, n in c.items() if a), default=0) / c.total() for problem, c in pools.items()}


def classes(share: dict[str, float]) -> list[tuple[tuple[float, float], list[str]]]:
    """Problems in three classes of about equal size, from the hardest."""
    order = sorted(share, key=lambda problem: share[problem])
    parts = [list(part) for part in np.array_split(np.array(order, dtype=object), min(NUM_CLASSES, len(order)))]
    return [((share[part[0]], share[part[-1]]), part) for part in parts]


Option = tuple[str, str, int, float]
"""Run, method, budget, tokens per problem."""


def recommend(runs: dict[str, Results], tokens: float) -> list[Choice]:
    """The most accurate (run, method, budget) of at most ``tokens`` sampled tokens per problem, for each class of difficulty.

    The option is the best on all problems of the class. Its accuracy there would be too high, the more so the more options there are:
    the best of equals is the luckiest. So each half of the problems also chooses an option for the other half, and the accuracy stated
    is that of these options on the halves that did not choose them.

    :param dict runs: results by name; those of several presets or models on the same problems may be given together.
    :raises ValueError: if nothing is that cheap, or no run has independent samples.
    """
    with_samples = [results for results in runs.values() if results.samples]
    share = agreement(with_samples[0] if with_samples else next(iter(runs.values())))
    options: list[Option] = [
        (name, method, budget, results.mean_cost(method, budget))
        for name, results in runs.items()
        for method in results.methods
        for budget in results.budgets(method)
    ]
    affordable = [option for option in options if option[3] <= tokens]
    if not affordable:
        least = min((option[3] for option in options if not math.isnan(option[3])), default=math.nan)
        raise ValueError(f"no method of these runs takes at most {tokens:g} tokens per problem; the cheapest takes {least:.0f}")
    means = {option: _problem_means(runs[option[0]], option) for option in affordable}
    choices = []
    for between, problems in classes(share):
        name, method, budget, cost = _best(means, problems)
        rows = _cross_fitted(means, problems)
        missing = out_of(((problem, 0) for problem, value in rows.items() if not math.isnan(value)), len(problems)) if rows else ""
        accuracy = proportion(np.array(list(rows.values())))
        choices.append(Choice(between, len(problems), name, method, budget, cost, accuracy, missing))
    return choices


def _problem_means(results: Results, option: Option) -> dict[str, float]:
    means = problem_means(results.table(option[1], option[2]))[:, 0]
    return dict(zip(results.problems, means.tolist(), strict=True))


def _best(means: dict[Option, dict[str, float]], problems: Sequence[str]) -> Option:
    """The most accurate option on some problems, the cheapest of equals."""

    def merit(option: Option) -> tuple[float, float]:
        accuracy = mean_over_problems(_rows(means[option], problems))
        return -math.inf if math.isnan(accuracy) else accuracy, -option[3]

    return max(means, key=merit)


def _cross_fitted(means: dict[Option, dict[str, float]], problems: Sequence[str]) -> dict[str, float]:
    """Of each problem, the accuracy of what the other half chooses; empty where a half is."""
    part_of = half_of(problems)
    halves = [[problem for problem in problems if part_of[problem] == part] for part in (0, 1)]
    if not all(halves):
        return {}
    options = [_best(means, half) for half in halves[::-1]]
    return {problem: means[option].get(problem, math.nan) for option, half in zip(options, halves, strict=True) for problem in half}


def _rows(means: dict[str, float], problems: Sequence[str]) -> Array:
    return np.array([means.get(problem, math.nan) for problem in problems])
