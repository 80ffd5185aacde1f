"""Which method to run at which budget, by how hard a problem looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Interval, bootstrap
from .results import Results, known_mean

NUM_CLASSES = 3


@dataclass(frozen=True)
class Choice:
    """The best that a run's records show for a class of problems.

    :ivar tuple agreement: range of the class: the share of the most frequent answer among independent samples.
    :ivar str run: name of the run, which stands for models and preset.
    :ivar float tokens: mean tokens sampled per problem.
    :ivar Interval accuracy: on the problems of the class.
    """

    agreement: tuple[float, float]
    num_problems: int
    run: str
    method: str
    budget: int
    tokens: float
    accuracy: Interval


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


def recommend(runs: dict[str, Results], tokens: float) -> list[Choice]:
    """The most accurate (run, method, budget) of at most ``tokens`` sampled tokens per problem, for each class of difficulty.

    :param dict runs: results by name; those of several presets or models on the same problems may be given together.
    :raises ValueError: if nothing is that cheap, or no run has independent samples.
    """
    with_samples = [results for results in runs.values() if results.samples]
    share = agreement(with_samples[0] if with_samples else next(iter(runs.values())))
    options = [
        (name, method, budget, results.mean_cost(method, budget))
        for name, results in runs.items()
        for method in results.methods
        for budget in results.budgets(method)
    ]
    affordable = [option for option in options if option[3] <= tokens]
    if not affordable:
        least = min((option[3] for option in options if not math.isnan(option[3])), default=math.nan)
        raise ValueError(f"no method of these runs takes at most {tokens:g} tokens per problem; the cheapest takes {least:.0f}")
    choices = []
    for between, problems in classes(share):
        name, method, budget, cost = max(
            affordable, key=lambda option: (_mean(runs[option[0]], option[1], option[2], problems), -option[3])
        )
        table = _rows(runs[name], method, budget, problems)
        choices.append(Choice(between, len(problems), name, method, budget, cost, bootstrap(table)))
    return choices


def _rows(results: Results, method: str, budget: int, problems: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    known = [results.problems.index(problem) for problem in problems if problem in results.problems]
    return results.table(method, budget)[known]


def _mean(results: Results, method: str, budget: int, problems: Sequence[str]) -> float:
    value = known_mean(_rows(results, method, budget, problems))
    return -math.inf if math.isnan(value) else value
