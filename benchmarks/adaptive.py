"""Tokens that adaptive budgets save on the demo problems, and what they cost in accuracy, by level.

Each rule stops the method that it is around, at most at the largest budget; the same method without a rule has all budgets. Saving and
difference of accuracies are paired by problem: against the whole budget, and against the fixed budget that costs as many tokens (between
two budgets, accuracy and tokens are interpolated). ``python benchmarks/adaptive.py``, with ``--quick`` for a few problems and
``--problems N``. A run is kept in ``--out`` and continued where it ended. About ten minutes on one busy core.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from common import record, single_thread, table

from ppl_llm.evaluation import Results, evaluate
from ppl_llm.evaluation.intervals import Array, Interval, bootstrap
from ppl_llm.evaluation.source import Models
from ppl_llm.tasks import load_problems

RULES = (
    "self-consistency:until=beta:0.95",
    "self-consistency:until=same:4",
    "self-consistency:until=share:0.75:batch=2:doubling=true",
    "importance:until=beta:0.95",
    "best-of-n:until=pandora:0.01",
)
BUDGETS = (4, 8, 16, 32)


def tokens(entry: dict[str, Any]) -> float:
    return float(entry["cost"].get("tokens_sampled", math.nan))


def at_equal_tokens(results: Results, rule: str, fixed: str, problems: list[str]) -> Interval:
    """Accuracy of the rule minus that of the fixed budget of as many tokens."""
    rows = [results.problems.index(problem) for problem in problems]
    keys = [(rule, BUDGETS[-1]), *((fixed, budget) for budget in BUDGETS)]
    columns = [results.table(*key, measure)[rows] for key in keys for measure in (None, tokens)]

    def difference(means: Array) -> Array:
        flat = means.reshape(-1, len(columns))
        curves = [(row[2::2], row[3::2]) for row in flat]
        fixed_accuracy = [np.interp(np.log(row[1]), np.log(cost), hits) for row, (hits, cost) in zip(flat, curves, strict=True)]
        return (flat[:, 0] - np.array(fixed_accuracy)).reshape(means.shape[:-1])

    return bootstrap(np.stack(columns, -1), difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--out", default="build/adaptive")
    options = parser.parse_args()
    single_thread()
    problems = list(load_problems("demo", limit=8 if options.quick else options.problems))
    models, largest = Models(), BUDGETS[-1]
    fixed = tuple(dict.fromkeys(rule.partition(":")[0] for rule in RULES))
    evaluate(problems, models, options.out, methods=fixed, budgets=BUDGETS, group_size=16)
    evaluate(problems, models, options.out, methods=RULES, budgets=(largest,), group_size=16)
    results = Results.read(options.out)
    levels: dict[str, list[str]] = {"all": results.problems}
    for problem, level in sorted(results.levels.items(), key=lambda item: str(item[1])):
        levels.setdefault(f"level {level}", []).append(problem)
    rows = []
    for rule in RULES:
        whole = (rule.partition(":")[0], largest)
        for name, members in levels.items():
            places = [results.problems.index(problem) for problem in members]
            rows.append(
                {
                    "rule": rule,
                    "problems": f"{name} ({len(members)})",
                    "drawn": round(float(np.nanmean(results.table(rule, largest, lambda entry: float(entry["drawn"]))[places])), 1),
                    "tokens saved": str(results.saving((rule, largest), whole, members)),
                    "accuracy": str(results.accuracy(rule, largest, members)),
                    f"minus {largest} drawn": _signed(results.difference((rule, largest), whole, members)),
                    "minus as many tokens": _signed(at_equal_tokens(results, rule, whole[0], members)),
                }
            )
    print(table(rows))
    if not options.quick:
        record("adaptive", rows, {"problems": len(problems), "budgets": list(BUDGETS), "temperature": models.temperature})


def _signed(value: Interval) -> str:
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


if __name__ == "__main__":
    main()
