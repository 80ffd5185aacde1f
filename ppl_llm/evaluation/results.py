"""Records as tables: accuracy by method and budget, with everything recomputed that needs no model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tasks import RIGHT
from .aggregators import (
    AGGREGATIONS,
    MODEL,
    Candidate,
    best_of_majority,
    best_of_n,
    first_finish,
    majority,
    posterior_majority,
    weighted_majority,
)
from .intervals import Interval, bootstrap
from .metrics import pass_at_k
from .records import CONFIGURATION, read_records
from .rpc import rpc
from .votes import from_record
from .work import SHARED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = NDArray[np.float64]

SCORES = (*AGGREGATIONS, MODEL)
"""Scores of a solution that a run may have recorded."""

OFFLINE: dict[str, Callable[[Sequence[Candidate]], Any]] = {
    "majority": majority,
    "posterior": posterior_majority,
    "first-finish": first_finish,
    "rpc": rpc,
    **{f"best-of-majority, {a}": lambda pool, a=a: best_of_majority(pool, aggregation=a) for a in SCORES},  # type: ignore[misc]
    **{f"best-of-n, {a}": lambda pool, a=a: best_of_n(pool, a) for a in SCORES},  # type: ignore[misc]
    **{f"weighted, {a}": lambda pool, a=a: weighted_majority(pool, a) for a in SCORES},  # type: ignore[misc]
}
"""Votes over the independent samples, recomputed from records."""


class Results:
    """What a run's records say.

    :param records: see :mod:`ppl_llm.evaluation.work`.
    :param dict configuration: what they were made with.
    :ivar list problems: ids, in order of first appearance.
    :ivar list seeds:
    :ivar dict levels: level of each problem that has one.
    """

    def __init__(self, records: Iterable[dict[str, Any]], configuration: dict[str, Any] | None = None) -> None:
        self.configuration = configuration or {}
        self._offline: dict[tuple[str, int], Table] = {}
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

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """The records of a run's folder.

        :raises FileNotFoundError: if there are none.
        """
        path = Path(folder) / CONFIGURATION
        return cls(read_records(folder), json.loads(path.read_text()) if path.exists() else None)

    def restricted(self, problems: Iterable[str], seeds: Iterable[int]) -> Results:
        """The records of some problems and seeds."""
        kept, known = dict.fromkeys(problems), set(seeds)
        order = {problem: i for i, problem in enumerate(kept)}
        records = [r for cells in self.by_key.values() for r in cells.values() if r["problem"] in kept and r["seed"] in known]
        return Results(sorted(records, key=lambda record: order[record["problem"]]), self.configuration)

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
        """Share of correct answers with a bootstrap interval over problems and seeds."""
        table = self.table(method, budget)
        if problems is not None:
            table = table[[self.problems.index(p) for p in problems]]
        return bootstrap(table)

    def difference(self, first: tuple[str, int], second: tuple[str, int]) -> Interval:
        """Accuracy of the first (method, budget) minus that of the second, paired by problem and seed."""
        return bootstrap(self.table(*first) - self.table(*second))

    def expected_accuracy(self, method: str, budget: int) -> Interval:
        """Posterior probability of the right answer, which is the accuracy of one draw from the posterior."""
        return bootstrap(self.table(method, budget, self._mass_on_right))

    def _mass_on_right(self, record: dict[str, Any]) -> float:
        return sum(mass for answer, mass in record["answers"].items() if self.is_right(record["problem"], answer))

    def mean_cost(self, method: str, budget: int, counter: str = "tokens_sampled") -> float:
        """Mean of a cost counter per problem."""
        return known_mean(self.table(method, budget, lambda record: float(record["cost"].get(counter, math.nan))))

    def plot_scaling(self, against: str = "budget") -> Figure:
        """See :func:`ppl_llm.evaluation.figures.scaling`."""
        from .figures import scaling

        return scaling(self, against)

    def scaling_ratio(self, first: str, second: str, other: Results | None = None) -> Interval:
        """How many times the budget the second method needs for the accuracy of the first: geometric mean over the accuracies that both
        reach, between their budgets by interpolation of accuracy on the logarithm of the budget; nan where the curves do not overlap.

        :param Results other: where the second method's records are, of the same problems and seeds.
        """
        sources = (self, first), (other or self, second)
        budgets = [results.budgets(method) for results, method in sources]
        tables = [results.table(method, b) for (results, method), own in zip(sources, budgets, strict=True) for b in own]
        split = len(budgets[0])
        return bootstrap(np.stack(tables, -1), lambda means: _budget_ratio(budgets[0], means[:split], budgets[1], means[split:]), draws=500)

    @cached_property
    def samples(self) -> dict[tuple[str, int], list[Candidate]]:
        """The independent samples of each problem and seed, from the record with the most."""
        best: dict[tuple[str, int], list[Candidate]] = {}
        for budget in self.budgets(SHARED):
            for cell, record in self.by_key[SHARED, budget].items():
                if "candidates" in record:
                    best[cell] = [from_record(c, self.configuration.get("temperature", 1.0)) for c in record["candidates"]]
        return best

    @cached_property
    def gold(self) -> dict[str, str | None]:
        """The right answer of each problem, ``None`` where it is not known or not the only one."""
        known = {problem: record["gold"] for cells in self.by_key.values() for (problem, _), record in cells.items()}
        return {problem: None if answer is None else str(answer) for problem, answer in known.items()}

    @cached_property
    def verdicts(self) -> dict[str, dict[str, float]]:
        """What the verifier of each problem that has one gave for the answers that occurred."""
        found: dict[str, dict[str, float]] = {}
        for cells in self.by_key.values():
            for (problem, _), record in cells.items():
                if "verdicts" in record:
                    found.setdefault(problem, {}).update(record["verdicts"])
        return found

    def is_right(self, problem: str, answer: Any) -> bool:
        """Whether an answer is right, by the verdict on it where the problem has a verifier, else by the right answer.

        :raises ValueError: for an answer that occurs in no record and only a verifier could judge.
        """
        if answer is None:
            return False
        if problem not in self.verdicts:
            return str(answer) == self.gold[problem]
        if str(answer) not in self.verdicts[problem]:
            raise ValueError(f"no record has a verdict on answer {answer!r} to problem {problem!r}; a vote chooses among recorded answers")
        return self.verdicts[problem][str(answer)] >= RIGHT

    def offline(self, vote: str, budget: int, methods: dict[str, Callable[[Sequence[Candidate]], Any]] | None = None) -> Table:
        """``[problems, seeds]``: whether a vote over the first ``budget`` independent samples is correct, nan where the records lack what
        it needs.

        :param str vote: a name of :data:`OFFLINE`, or of ``methods``.
        """
        if methods is None and (vote, budget) in self._offline:
            return self._offline[vote, budget]
        fn = (methods or OFFLINE)[vote]

        def cell(problem: str, seed: int) -> float:
            pool = self.samples.get((problem, seed), [])
            if len(pool) < budget or _lacks(vote, pool):
                return math.nan
            return float(self.is_right(problem, fn(pool[:budget])))

        table = np.array([[cell(p, s) for s in self.seeds] for p in self.problems])
        if methods is None:
            self._offline[vote, budget] = table
        return table

    def right(self, problem: str, pool: Sequence[Candidate]) -> list[bool]:
        """Which of the candidates have the right answer of a problem."""
        return [self.is_right(problem, candidate.answer) for candidate in pool]

    def over_samples(self, measure: Callable[[str, Sequence[Candidate]], float | Sequence[float]], columns: int = 1) -> Table:
        """``[problems, seeds, columns]`` of what ``measure`` makes of a problem and its independent samples, nan where there are none."""
        table = np.full((len(self.problems), len(self.seeds), columns), math.nan)
        for i, problem in enumerate(self.problems):
            for j, seed in enumerate(self.seeds):
                if pool := self.samples.get((problem, seed)):
                    table[i, j] = measure(problem, pool)
        return table

    def pass_at(self, k: int) -> Table:
        """``[problems, seeds, 1]`` of pass@k over the independent samples."""
        return self.over_samples(
            lambda problem, pool: pass_at_k(len(pool), sum(self.right(problem, pool)), k) if len(pool) >= k else math.nan
        )

    def coverage(self, ks: Sequence[int]) -> list[float]:
        """pass@k for each k, averaged over problems and seeds."""
        return [known_mean(self.pass_at(k)) for k in ks]


def _lacks(vote: str, pool: Sequence[Candidate]) -> bool:
    """Whether the records lack what a vote needs."""
    if vote == "rpc":
        return pool[0].log_prob is None
    if vote.endswith(f", {MODEL}"):
        return pool[0].whole_log_odds is None
    return vote.endswith(tuple(f", {a}" for a in AGGREGATIONS)) and not pool[0].step_log_odds


def known_mean(table: Table) -> float:
    """Mean of what is not nan; nan if nothing is left."""
    known = table[~np.isnan(table)]
    return float(known.mean()) if known.size else math.nan


def _budget_ratio(xs: Sequence[int], x_means: Table, ys: Sequence[int], y_means: Table) -> float:
    first, second = np.maximum.accumulate(x_means), np.maximum.accumulate(y_means)
    low, high = max(first[0], second[0]), min(first[-1], second[-1])
    if not high > low:
        return math.nan
    levels = np.linspace(low, high, 21)[1:-1]
    needed = [np.interp(levels, _increasing(curve), np.log(own)) for curve, own in ((first, xs), (second, ys))]
    return float(np.exp(np.mean(needed[1] - needed[0])))


def _increasing(curve: Table) -> Table:
    """Strictly increasing, for interpolation; a plateau is reached at its first budget."""
    return curve + 1e-12 * np.arange(len(curve))
