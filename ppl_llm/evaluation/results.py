"""Records as tables: accuracy by method and budget, with everything recomputed that needs no model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..distributions.potentials import AGGREGATIONS
from ..tasks import RIGHT
from .aggregators import (
    MODEL,
    Candidate,
    best_of_majority,
    best_of_n,
    first_finish,
    majority,
    posterior_majority,
    weighted_majority,
)
from .confidence_votes import borda_vote, deepconf_vote
from .figures import scaling
from .intervals import Interval, mean_over_problems, proportion
from .metrics import Accuracies, Table, out_of, pass_at_k
from .records import CONFIGURATION, read_records
from .rpc import rpc
from .votes import from_record
from .work import SHARED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = (*AGGREGATIONS, MODEL)
"""Scores of a solution that a run may have recorded."""

OFFLINE: dict[str, Callable[[Sequence[Candidate]], Any]] = {
    "majority": majority,
    "posterior": posterior_majority,
    "first-finish": first_finish,
    "rpc, sum": rpc,
    "rpc, mean": lambda pool: rpc(pool, "mean"),
    "borda, confidence": borda_vote,
    "deepconf, 10 %": deepconf_vote,
    "deepconf, 90 %": lambda pool: deepconf_vote(pool, 0.9),
    **{f"best-of-majority, {a}": lambda pool, a=a: best_of_majority(pool, aggregation=a) for a in SCORES},  # type: ignore[misc]
    **{f"best-of-n, {a}": lambda pool, a=a: best_of_n(pool, a) for a in SCORES},  # type: ignore[misc]
    **{f"weighted, {a}": lambda pool, a=a: weighted_majority(pool, a) for a in SCORES},  # type: ignore[misc]
}
"""Votes over the independent samples, recomputed from records."""


class Results(Accuracies):
    """What a run's records say, and what votes over its independent samples would have said."""

    def __init__(self, records: Iterable[dict[str, Any]], configuration: dict[str, Any] | None = None) -> None:
        super().__init__(records, configuration)
        self._offline: dict[tuple[str, int], Table] = {}

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
        configuration = {**self.configuration, "num_problems": len(kept)}
        return Results(sorted(records, key=lambda record: order[record["problem"]]), configuration)

    def expected_accuracy(self, method: str, budget: int) -> Interval:
        """Posterior probability of the right answer, which is the accuracy of one draw from the posterior."""
        return proportion(self.table(method, budget, self._mass_on_right))

    def _mass_on_right(self, record: dict[str, Any]) -> float:
        right = sum(mass for answer, mass in record["answers"].items() if self.is_right(record["problem"], answer))
        return min(1.0, right)  # records round masses

    def plot_scaling(self, against: str = "budget") -> Figure:
        """See :func:`ppl_llm.evaluation.figures.scaling`."""
        return scaling(self, against)

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
        return [mean_over_problems(self.pass_at(k)) for k in ks]

    def sampled(self) -> str:
        """How many problems have independent samples; empty where all have."""
        return out_of(self.samples, self.num_problems)


def _lacks(vote: str, pool: Sequence[Candidate]) -> bool:
    """Whether the records lack what a vote needs."""
    if vote.startswith("rpc, "):
        return pool[0].log_prob is None
    if vote.startswith(("borda, ", "deepconf, ")):
        return pool[0].confidence is None
    if vote.endswith(f", {MODEL}"):
        return pool[0].whole_log_odds is None
    return vote.endswith(tuple(f", {a}" for a in AGGREGATIONS)) and not pool[0].step_log_odds
