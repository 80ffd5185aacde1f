"""Figures of merit: accuracy and cost by method and budget, and what is computed from samples and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..answers.voting import Answer
from .aggregators import Candidate
from .budget_ratio import BudgetRatio, bootstrap_ratio
from .intervals import Interval, bootstrap, mean_over_problems, proportion

Table = NDArray[np.float64]


class Accuracies:
    """Accuracy and cost by method and budget, from records.

    :param records: see :mod:`ppl_llm.evaluation.work`.
    :param dict configuration: settings of the run.
    :ivar list problems: ids, in order of first appearance.
    :ivar list seeds: of the records.
    :ivar dict levels: level of each problem that has one.
    :ivar int num_problems: that the run was about, those without any record included.
    :raises ValueError: if there are no records.
    """

    def __init__(self, records: Iterable[dict[str, Any]], configuration: dict[str, Any] | None = None) -> None:
        self.configuration = configuration or {}
        self.by_key: dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]] = {}
        problems: dict[str, Any] = {}
        seeds: set[int] = set()
        for record in records:
            self.by_key.setdefault((record["method"], record["budget"]), {})[record["problem"], record["seed"]] = record
            problems.setdefault(record["problem"], record.get("level"))
            seeds.add(record["seed"])
        if not problems:
            raise ValueError("there are no records yet")
        self.problems, self.seeds = list(problems), sorted(seeds)
        self.levels = {problem: level for problem, level in problems.items() if level is not None}
        self.num_problems = max(len(problems), self.configuration.get("num_problems", 0))

    @property
    def methods(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(method for method, _ in self.by_key))

    def budgets(self, method: str) -> list[int]:
        """Budgets at which a method has records."""
        return sorted(budget for name, budget in self.by_key if name == method)

    def table(self, method: str, budget: int, value: Callable[[dict[str, Any]], float] | None = None) -> Table:
        """``[problems, seeds]`` of a number per record, nan where there is none; by default whether it is correct."""
        measure = value if value is not None else lambda record: float(record["correct"])
        cells = self.by_key.get((method, budget), {})
        rows = [[measure(cells[p, s]) if (p, s) in cells else math.nan for s in self.seeds] for p in self.problems]
        return np.array(rows, dtype=np.float64)

    def accuracy(self, method: str, budget: int, problems: Sequence[str] | None = None) -> Interval:
        """Share of correct answers, seeds averaged within problems, with Wilson's interval at the effective number of problems.

        :param problems: only these.
        """
        table = self.table(method, budget)
        if problems is not None:
            table = table[[self.problems.index(p) for p in problems]]
        return proportion(table)

    def difference(self, first: tuple[str, int], second: tuple[str, int], problems: Sequence[str] | None = None) -> Interval:
        """Accuracy of the first (method, budget) minus that of the second, paired by problem and seed, with a bootstrap interval over
        problems.

        :param problems: only these.
        """
        table = self.table(*first) - self.table(*second)
        return bootstrap(table if problems is None else table[[self.problems.index(p) for p in problems]])

    def mean_cost(self, method: str, budget: int, counter: str = "tokens_sampled") -> float:
        """Mean of a cost counter per problem; nan if no record has it."""
        return mean_over_problems(self.table(method, budget, lambda record: float(record["cost"].get(counter, math.nan))))

    def without_answer(self, method: str, budget: int) -> float:
        """Mean posterior probability of the candidates that give no answer; nan if no record has it."""
        return mean_over_problems(self.table(method, budget, lambda record: float(record.get("no_answer", math.nan))))

    def saving(
        self, first: tuple[str, int], second: tuple[str, int], problems: Sequence[str] | None = None, counter: str = "tokens_sampled"
    ) -> Interval:
        """Share of the second (method, budget)'s mean cost that the first saves, paired by problem and seed; nan where a cost is unknown.

        :param problems: only these.
        """
        costs = [
            self.table(method, budget, lambda record: float(record["cost"].get(counter, math.nan))) for method, budget in (first, second)
        ]
        both = np.where(np.isnan(costs[0]) | np.isnan(costs[1]), math.nan, np.stack(costs))
        if problems is not None:
            both = both[:, [self.problems.index(p) for p in problems]]
        return bootstrap(np.moveaxis(both, 0, -1), lambda means: 1 - means[..., 0] / means[..., 1])

    def scaling_ratio(self, first: str, second: str, other: Accuracies | None = None) -> BudgetRatio:
        """How many times the budget the second method needs for the accuracy of the first, or a bound where their accuracies hardly
        overlap, see :mod:`ppl_llm.evaluation.budget_ratio`.

        :param Accuracies other: where the second method's records are, of the same problems and seeds.
        """
        curves = []
        for results, method in ((self, first), (other or self, second)):
            budgets = results.budgets(method)
            curves.append((budgets, np.stack([results.table(method, budget) for budget in budgets], -1)))
        return bootstrap_ratio(*curves)

    def evaluated(self, *keys: tuple[str, int], problems: Sequence[str] | None = None) -> str:
        """``n of N problems``, or answers where every problem has some; empty where nothing is missing.

        :param keys: (method, budget), all of which a problem must have.
        :param problems: only these.
        """
        found = set.intersection(*(set(self.by_key.get(key, ())) for key in keys))
        kept = set(self.problems if problems is None else problems)
        return out_of((cell for cell in found if cell[0] in kept), self.num_problems if problems is None else len(kept))

    def least_evaluated(self, method: str) -> str:
        """The same at the budget at which most is missing."""
        budget = min(self.budgets(method), key=lambda budget: len(self.by_key[method, budget]))
        return self.evaluated((method, budget))


def out_of(cells: Iterable[tuple[str, int]], total: int) -> str:
    """``n of N problems``, or answers where every problem has some but not for all seeds; empty where nothing is missing.

    :param cells: (problem, seed) of what there is.
    :param int total: number of problems.
    """
    found = set(cells)
    problems, seeds = {problem for problem, _ in found}, {seed for _, seed in found}
    if len(problems) < total:
        return f"{len(problems)} of {total} problems"
    every = total * len(seeds)
    return f"{len(found)} of {every} answers" if len(found) < every else ""


def half_of(problems: Sequence[str]) -> dict[str, int]:
    """0 or 1 for each problem. Not every other one: where levels take turns, as in the demo, the halves would be of different levels."""
    shuffled = np.random.default_rng(0).permutation(len(problems))
    return {problem: int(place) % 2 for problem, place in zip(problems, shuffled, strict=True)}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021).

    :raises ValueError: if ``k`` exceeds the number of samples, or the counts make no sense.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in 1 .. {num_samples} (the number of samples), got {k!r}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct must lie in 0 .. {num_samples}, got {num_correct!r}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_at_k(candidates: Sequence[Candidate], is_correct: Callable[[Answer], bool], k: int, draws: int = 100, seed: int = 0) -> float:
    """Accuracy of a majority vote among k of the samples in random order: a tie, which goes to the first, counts its share.

    :param is_correct: tells whether an answer is right.
    :param int draws: random subsets that it is averaged over; for ``k = n`` it is exact.
    :raises ValueError: if ``k`` exceeds the number of samples.
    """
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must lie in 1 .. {len(candidates)} (the number of samples), got {k!r}")
    known = {answer: i for i, answer in enumerate(dict.fromkeys(c.answer for c in candidates if c.answer is not None))}
    right = np.array([is_correct(answer) for answer in known], dtype=bool)
    if not right.any():
        return 0.0
    answers = np.array([len(known) if c.answer is None else known[c.answer] for c in candidates])
    n = len(candidates)
    subsets = np.arange(n)[None] if k == n else np.random.default_rng(seed).random((draws, n)).argsort(-1)[:, :k]
    votes = (answers[subsets][..., None] == np.arange(len(known))).sum(-2)  # [draws, answers]
    wins = (votes == votes.max(-1, keepdims=True)) & (votes > 0)
    return float(np.mean((wins & right).sum(-1) / np.maximum(1, wins.sum(-1))))


def best_of_k_chances(scores: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability of each sample to be the best of k that are drawn without replacement; of equal ones the first is the best.

    :raises ValueError: if ``k`` exceeds the number of samples.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1 .. {n} (the number of samples), got {k!r}")
    below = np.empty(n, dtype=np.int64)
    below[np.lexsort((-np.arange(n), values))] = np.arange(n)
    return np.array([math.comb(int(rank), k - 1) / math.comb(n, k) for rank in below])


class PowerLaw(NamedTuple):
    """Coverage ``exp(-scale * k ** -exponent)`` (Brown et al., Large Language Monkeys, 2024)."""

    scale: float
    exponent: float

    def __call__(self, k: ArrayLike) -> NDArray[np.float64]:
        return np.exp(-self.scale * np.asarray(k, dtype=np.float64) ** -self.exponent)


def fit_coverage(ks: Sequence[int], coverage: Sequence[float]) -> PowerLaw:
    """Least squares of ``log(-log coverage)`` on ``log k``; points of coverage 0 or 1 say nothing and are left out.

    :raises ValueError: with fewer than two usable points.
    """
    points = [(math.log(k), math.log(-math.log(c))) for k, c in zip(ks, coverage, strict=True) if 0 < c < 1]
    if len(points) < 2:
        raise ValueError(f"a power law needs two budgets with a coverage between 0 and 1, got {list(coverage)}")
    log_k, height = zip(*points, strict=True)
    slope, intercept = np.polyfit(np.array(log_k), np.array(height), 1)
    return PowerLaw(float(math.exp(intercept)), float(-slope))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counted half; nan where one class is missing."""
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    rank = middle[where]
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of probabilities."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(labels, dtype=np.float64)) ** 2))


class Bin(NamedTuple):
    """A bar of a reliability diagram."""

    confidence: float
    frequency: float
    size: int


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> list[Bin]:
    """Mean prediction and frequency of the event in bins of equal width; empty bins are left out."""
    p, hit = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    which = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [Bin(float(p[which == b].mean()), float(hit[which == b].mean()), int((which == b).sum())) for b in np.unique(which)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error of a reliability diagram."""
    total = sum(b.size for b in bins)
    return sum(b.size * abs(b.confidence - b.frequency) for b in bins) / total


def false_positive_rate(scores: Sequence[float], correct: Sequence[bool], threshold: float) -> float:
    """Share of wrong solutions among those that the verifier accepts (Inference Scaling fLaws, 2024); nan if it accepts none."""
    accepted = [right for score, right in zip(scores, correct, strict=True) if score >= threshold]
    return 1 - sum(accepted) / len(accepted) if accepted else math.nan
