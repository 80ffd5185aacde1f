"""Statistics with a known fault, which the tests must reject, and the simulations that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_llm.evaluation.aggregators import Candidate
from ppl_llm.evaluation.budget_ratio import budget_ratios
from ppl_llm.evaluation.intervals import Interval, problem_means, resampled_means
from ppl_llm.evaluation.results import Results

Table = NDArray[np.float64]


def seeds_resampled(table: Table, draws: int = 500, seed: int = 0) -> Interval:
    """A bootstrap that resamples problems, and then seeds within each: the noise of the seeds counts twice."""
    rng = np.random.default_rng(seed)
    problems, seeds = table.shape
    rows = rng.integers(problems, size=(draws, problems, 1))
    means = table[rows, rng.integers(seeds, size=(draws, problems, seeds))].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high))


def percentiles(table: Table, draws: int = 500, seed: int = 0) -> Interval:
    """The percentile interval as it is: of width zero where all problems are alike."""
    low, high = np.quantile(resampled_means(table, draws, seed), [0.025, 0.975])
    return Interval(float(problem_means(table).mean()), float(low), float(high))


def of_overlapping_draws(xs: Sequence[int], first: Table, second: Table, draws: int = 500) -> Interval:
    """A ratio of budgets whose draws without an overlap are left out."""
    split = len(xs)
    paired = np.concatenate([problem_means(first), problem_means(second)], -1)[:, None]

    def ratio(means: Table) -> Table:
        return budget_ratios(xs, means[..., :split], xs, means[..., split:])

    value, values = float(ratio(paired.mean((0, 1)))), ratio(resampled_means(paired, draws))
    kept = values[np.isfinite(values) & (values > 0)]
    if not (0 < value < math.inf and kept.size):
        return Interval(math.nan, math.nan, math.nan)
    return Interval(value, *map(float, np.quantile(kept, [0.025, 0.975])))


def accuracy_of_the_luckiest(results: Results) -> float:
    """The best option's accuracy on the problems that it was chosen on."""
    return max(results.accuracy(method, budget).value for method, budget in results.by_key)


def mean_log_prob(log_probs: Table, tokens: Sequence[int]) -> float:
    """Mean log-probability of the tokens that were taken: another quantity that goes by the name of self-certainty."""
    return float(np.mean([row[token] for row, token in zip(log_probs, tokens, strict=True)]))


def frequency_multiplied(candidates: Sequence[Candidate], frequency: float) -> set[Any]:
    """Frequent answers by ``count >= frequency * N``: 7 of 25 are not 0.28."""
    answers = [candidate.answer for candidate in candidates]
    return {answer for answer in answers if answers.count(answer) >= frequency * len(answers)}


def coverage(interval: Callable[[Table], Any], tables: Sequence[Table], truth: float) -> float:
    """Share of the tables whose interval holds the truth."""
    found = [interval(table) for table in tables]
    return sum(one.low <= truth <= one.high for one in found) / len(found)


def abilities(rng: np.random.Generator, mean: float, concentration: float, problems: int) -> Table:
    """``[problems, 1]`` chances that problems are solved, from a beta distribution."""
    return rng.beta(mean * concentration, (1 - mean) * concentration, size=(problems, 1))


def hits(rng: np.random.Generator, chances: Table, seeds: int) -> Table:
    """``[problems, seeds]`` of 0 and 1."""
    return (rng.random((len(chances), seeds)) < chances).astype(np.float64)
