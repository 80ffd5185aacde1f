"""What the tables and figures need of the records, small enough to be kept with the document."""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ppl_llm.evaluation.aggregators import Candidate, best_of_n, log_score, weighted_majority
from ppl_llm.evaluation.records import CONFIGURATION, read_records
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.votes import from_record
from ppl_llm.evaluation.work import SHARED

from .run import STEPS, TIMES
from .settings import SETTINGS

COUNTERS = ("tokens_sampled", "prm_calls")
RECOMPUTED = {
    **{f"best-of-n:{a}": lambda pool, a=a: best_of_n(pool, a) for a in ("last", "min", "mean")},
    **{f"weighted-best-of-n:{a}": lambda pool, a=a: weighted_majority(pool, a) for a in ("last", "min", "mean")},
}
"""Votes over the independent samples that are no methods of their own; the methods' score is the product."""

Solution = tuple[list[bool], list[float]]


@dataclass
class Outcomes:
    """Of one setting.

    :ivar str name: of the setting.
    :ivar list problems: ids.
    :ivar list levels: of the problems.
    :ivar dict right: of each (method, budget, seed) a character for each problem: ``1`` right, ``0`` wrong, ``-`` not run.
    :ivar dict cost: of each (method, budget), mean counters per problem.
    :ivar dict claims: of each (budget, seed), what the reward model gives the sample that best-of-N chooses for each problem.
    :ivar list solutions: labels and log-odds of the steps of some samples of each problem.
    :ivar dict spent: seconds of processor time and of the clock.
    """

    name: str
    problems: list[str]
    levels: list[Any]
    right: dict[tuple[str, int, int], str] = field(default_factory=dict)
    cost: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    claims: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    solutions: list[list[Solution]] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Outcomes | None:
        """From the records of a setting; ``None`` if there are none."""
        folders = sorted(path.parent for path in folder.glob(f"*/{CONFIGURATION}"))
        records = [record for part in folders for record in read_records(part)]
        if not records:
            return None
        problems = list(dict.fromkeys(record["problem"] for record in records))
        place = {problem: i for i, problem in enumerate(problems)}
        level = {record["problem"]: record["level"] for record in records}
        marks: dict[tuple[str, int, int], list[str]] = defaultdict(lambda: ["-"] * len(problems))
        costs: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        claimed: dict[tuple[int, int], list[float]] = defaultdict(lambda: [math.nan] * len(problems))
        largest = max(record["budget"] for record in records)
        budgets = sorted({record["budget"] for record in records if record["method"] == SHARED})
        for record in records:
            key = record["method"], record["budget"], record["seed"]
            marks[key][place[record["problem"]]] = str(int(record["correct"]))
            costs[key[:2]].append(record["cost"])
            if record["method"] == SHARED and record["budget"] == largest:
                pool = [from_record(candidate) for candidate in record["candidates"]]
                for budget in budgets:
                    for name, vote in RECOMPUTED.items():
                        right = str(vote(pool[:budget])) == str(record["gold"])
                        marks[name, budget, record["seed"]][place[record["problem"]]] = str(int(right))
                    claimed[budget, record["seed"]][place[record["problem"]]] = _claim(pool[:budget])
        found = cls(folder.name, problems, [level[problem] for problem in problems])
        found.right = {key: "".join(row) for key, row in marks.items()}
        found.cost = {key: {name: sum(c.get(name, 0) for c in rows) / len(rows) for name in COUNTERS} for key, rows in costs.items()}
        found.claims = dict(claimed)
        found.solutions = [line for part in folders for line in _lines(part / STEPS)]
        times = [line for part in folders for line in _lines(part / TIMES)]
        found.spent = {name: sum(time[name] for time in times) for name in ("cpu_seconds", "seconds")}
        return found

    def lines(self) -> Iterator[dict[str, Any]]:
        """As plain values."""
        yield {"setting": self.name, "problems": self.problems, "levels": self.levels, "spent": _rounded(self.spent, 1)}
        for (method, budget, seed), row in self.right.items():
            yield {"setting": self.name, "method": method, "budget": budget, "seed": seed, "right": row}
        for (method, budget), cost in self.cost.items():
            yield {"setting": self.name, "method": method, "budget": budget, "cost": _rounded(cost, 1)}
        for (budget, seed), row in self.claims.items():
            yield {"setting": self.name, "budget": budget, "seed": seed, "claims": [None if math.isnan(c) else round(c, 3) for c in row]}
        steps = [[["".join(str(int(r)) for r in rights), [round(z, 1) for z in odds]] for rights, odds in one] for one in self.solutions]
        yield {"setting": self.name, "steps": steps}

    def add(self, line: dict[str, Any]) -> None:
        """The reverse, line by line."""
        if "right" in line:
            self.right[line["method"], line["budget"], line["seed"]] = line["right"]
        elif "cost" in line:
            self.cost[line["method"], line["budget"]] = line["cost"]
        elif "claims" in line:
            self.claims[line["budget"], line["seed"]] = [math.nan if c is None else c for c in line["claims"]]
        else:
            self.solutions = [[([r == "1" for r in rights], odds) for rights, odds in one] for one in line["steps"]]

    @cached_property
    def results(self) -> Results:
        """Of which the library makes tables."""
        return Results(
            {"problem": problem, "method": method, "budget": budget, "seed": seed, "correct": mark == "1", "level": level}
            | {"cost": self.cost.get((method, budget), {}), "gold": ""}
            for (method, budget, seed), row in self.right.items()
            for problem, level, mark in zip(self.problems, self.levels, row, strict=True)
            if mark != "-"
        )


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _claim(pool: list[Candidate]) -> float:
    """The probability that the reward model gives the best sample, by the product of its steps' scores."""
    given = [candidate for candidate in pool if candidate.answer is not None]
    return math.exp(max(log_score(candidate, "prod") for candidate in given)) if given else math.nan


def _rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def collect(runs: Path) -> dict[str, Outcomes]:
    """The outcomes of every setting that has records."""
    found = (Outcomes.read(runs / setting.name) for setting in SETTINGS)
    return {each.name: each for each in found if each is not None}


def save(outcomes: Iterable[Outcomes], path: Path) -> None:
    """One file, the same bytes for the same outcomes."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for each in outcomes for line in each.lines())
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def update(runs: Path, path: Path) -> None:
    """Write the outcomes of the records that there are; settings without records keep what the file has of them."""
    found = {**(load(path) if path.exists() else {}), **collect(runs)}
    save((found[setting.name] for setting in SETTINGS if setting.name in found), path)


class Collected(dict[str, Outcomes]):
    """Outcomes by setting."""

    def __missing__(self, setting: str) -> Outcomes:
        raise MissingSetting(f"there are no outcomes of the setting {setting!r}; --settings {setting} runs it")


class MissingSetting(KeyError):
    """What a table or a figure needs has not been run."""

    def __str__(self) -> str:
        return str(self.args[0])


def load(path: Path) -> dict[str, Outcomes]:
    """What :func:`save` wrote.

    :returns: a table that raises :class:`MissingSetting` where a setting is not in it.
    """
    found = Collected()
    for text in gzip.decompress(path.read_bytes()).decode().splitlines():
        line = json.loads(text)
        if "problems" in line:
            found[line["setting"]] = Outcomes(line["setting"], line["problems"], line["levels"], spent=line["spent"])
        else:
            found[line["setting"]].add(line)
    return found
