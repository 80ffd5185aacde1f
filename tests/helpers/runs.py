"""Folders as ``evaluate`` writes them, from made-up samples: large enough for every table and figure, and no model is run."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ppl_llm.evaluation import RecordStore, Results
from ppl_llm.evaluation.votes import VOTES, as_record, from_record

METHODS = {
    "importance": "posterior",
    "self-consistency": "majority",
    "best-of-n": "best-of-n",
    "smc": "posterior",
    "beam-search": "weighted",
}
BUDGETS = (1, 2, 4, 8)


def candidate(rng: random.Random, ability: float, skill: float) -> dict[str, Any]:
    """A sample that is right with probability ``ability``, and scored the better for it the larger ``skill`` is."""
    right = rng.random() < ability
    steps = [rng.gauss(skill if right else -skill, 1.0) for _ in range(rng.randint(1, 3))]
    return {
        "answer": "7" if right else rng.choice(["1", "2", "3", None]),
        "weight": math.exp(min(steps)),
        "log_odds": steps,
        "tokens": rng.randint(5, 40),
        "finished": True,
        "path": f"{rng.random()}",
        "log_prob": -rng.uniform(2, 20),
        "whole_log_odds": steps[-1],
    }


def write_run(folder: Path, *, problems: range = range(12), seeds: int = 2, skill: float = 1.0, **settings: Any) -> Path:
    """A run of five methods at four budgets."""
    records = []
    for problem in problems:
        for seed in range(seeds):
            rng = random.Random(f"{problem}/{seed}/{skill}")
            ability = 0.15 + 0.5 * (problem % 4) / 3
            shared = [candidate(rng, ability, skill) for _ in range(max(BUDGETS))]
            for method, vote in METHODS.items():
                for budget in BUDGETS:
                    pool = shared[:budget] if method != "smc" else [candidate(rng, ability + 0.1, skill) for _ in range(budget)]
                    records.append(_record(f"p{problem}", method, budget, seed, pool, vote, problem % 4 + 1))
    with RecordStore(folder, {"lm": "made up", "prm": f"skill {skill}", "temperature": 1.0, **settings}) as store:
        store.append(records)
    return folder


def _record(problem: str, method: str, budget: int, seed: int, pool: list[dict[str, Any]], vote: str, level: int) -> dict[str, Any]:
    candidates = [from_record(c) for c in pool]
    answer = VOTES[vote](candidates, "min")
    total = sum(c.weight for c in candidates)
    masses = {a: sum(c.weight for c in candidates if c.answer == a) / total for a in {c.answer for c in candidates} if a is not None}
    record = {
        "problem": problem,
        "method": method,
        "budget": budget,
        "seed": seed,
        "answer": answer,
        "correct": answer == "7",
        "gold": "7",
        "level": level,
        "answers": masses,
        "right_samples": sum(c.answer == "7" for c in candidates),
        "num_samples": budget,
        "cost": {"tokens_sampled": float(sum(c.tokens for c in candidates)), "prm_calls": 2.0 * budget},
        "seconds": 0.1,
    }
    if method == "smc":
        record |= {"ess": [budget / (1 + 0.2 * t) for t in range(1, 5)], "log_evidence": -1.0}
    if method == "smc" or (method == "importance" and budget == max(BUDGETS)):
        record["candidates"] = [as_record(c) for c in candidates]
    return record


def record(problem: str, method: str, budget: int, seed: int, correct: bool, **more: Any) -> dict[str, Any]:
    """A record whose right answer is 1."""
    base = {"problem": problem, "method": method, "budget": budget, "seed": seed, "correct": correct, "gold": "1", "level": 1}
    return {**base, "cost": {"tokens_sampled": 10.0 * budget}, **more}


def sample(answer: str, *log_odds: float, tokens: int = 5) -> dict[str, Any]:
    """A candidate in a record."""
    return {"answer": answer, "weight": 1.0, "log_odds": list(log_odds), "tokens": tokens, "finished": True, "path": answer}


POOL = [sample("2", 1.0), sample("1", 3.0, tokens=3), sample("2", 1.5), sample("1", 0.0)]


def results() -> Results:
    """Two problems, two seeds: a filter at two budgets, and four samples."""
    rows = []
    for problem, seed, right in [("p", 0, True), ("p", 1, False), ("q", 0, True), ("q", 1, True)]:
        rows += [record(problem, "smc", 4, seed, right), record(problem, "smc", 8, seed, True)]
        rows.append(record(problem, "importance", 4, seed, False, candidates=POOL))
    return Results(rows)
