"""ARISE, utility, saturation and the solve-or-verify frontier, against hand-computed values and plain enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from ppl_llm.evaluation.gain_tables import abstention_rows, arise_rows, ranking_rows, repeated_words, utility_rows, wrong_step_rows
from ppl_llm.evaluation.gains import arise, fit_saturation, utility, utility_of_samples
from ppl_llm.evaluation.intervals import Interval
from ppl_llm.evaluation.metrics import auroc
from ppl_llm.evaluation.report import tables
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.solve_or_verify import Allocation, allocations, frontier, reference
from ppl_llm.evaluation.work import SHARED
from ppl_llm.tasks.demo_task import DemoTask
from tests.helpers.runs import write_run


def test_arise_by_hand() -> None:
    """A gain of 1 at four times the tokens is worth 1/4, a loss at twice of them 2; what stays counts nothing."""
    assert arise([0, 1], [100, 400]) == pytest.approx(0.25)
    assert arise([1, 0], [100, 200]) == pytest.approx(-2.0)
    assert arise([0, 1, 1, 0], [100, 200, 800, 800]) == pytest.approx(0.5 - 1.0)
    assert arise([0.2, 0.6], [10, 20]) == pytest.approx(0.4 / 2)  # seeds averaged
    assert arise([[0, 1], [1, 1]], [[1, 2], [1, 2]]).tolist() == [0.5, 0.0]
    assert math.isnan(float(arise([0, math.nan], [1, 2])))


@pytest.mark.parametrize(
    ("correct", "tokens", "message"),
    [([1], [1], "two budgets"), ([0, 1], [1, 2, 3], "one shape"), ([0, 1], [0, 2], "tokens must be positive")],
)
def test_what_has_no_arise(correct: Any, tokens: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arise(correct, tokens)


def by_attempts(k: int, tp: float, fp: float, penalty: float, cost: float) -> float:
    """Attempt after attempt."""
    total, open_ = 0.0, 1.0
    for _ in range(k):
        total += open_ * (tp - penalty * fp - cost)
        open_ *= 1 - tp - fp
    return total


@pytest.mark.parametrize("k", [0, 1, 2, 7])
@pytest.mark.parametrize(("tp", "fp"), [(0.3, 0.1), (0.0, 0.4), (0.6, 0.4), (0.0, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize(("penalty", "cost"), [(0.0, 0.0), (2.0, 0.05)])
def test_utility_is_that_of_attempt_after_attempt(k: int, tp: float, fp: float, penalty: float, cost: float) -> None:
    assert utility(k, tp, fp, penalty, cost) == pytest.approx(by_attempts(k, tp, fp, penalty, cost), abs=1e-12)


def test_utility_by_hand() -> None:
    """a = .4: (1 - .6^2) / .4 (.3 - 2 .1) = 1.6 .1."""
    assert utility(2, 0.3, 0.1, 2.0) == pytest.approx(0.16)


@pytest.mark.parametrize(("tp", "fp"), [(2, 1), (0, 3), (3, 0), (0, 0), (1, 4)])
def test_utility_of_samples_is_the_mean_over_all_orders(tp: int, fp: int) -> None:
    kinds = "r" * tp + "w" * fp + "-" * (5 - tp - fp)
    for k in range(6):
        totals = []
        for order in itertools.permutations(kinds):
            total = 0.0
            for kind in order[:k]:
                total -= 0.05
                if kind != "-":
                    total += 1.0 if kind == "r" else -2.0
                    break
            totals.append(total)
        assert utility_of_samples(5, tp, fp, k, 2.0, 0.05) == pytest.approx(np.mean(totals), abs=1e-12)


def test_utility_of_samples_is_unbiased_and_that_of_shares_is_not() -> None:
    """Over all outcomes of four samples, 3^4: the closed form at the true chances; put into it, shares of the samples give another mean."""
    tp, fp, k = 0.35, 0.2, 3
    chances = {"r": tp, "w": fp, "-": 1 - tp - fp}
    mean = plugged = 0.0
    for outcome in itertools.product(chances, repeat=4):
        p = math.prod(chances[kind] for kind in outcome)
        hits, misses = outcome.count("r"), outcome.count("w")
        mean += p * utility_of_samples(4, hits, misses, k, 2.0, 0.03)
        plugged += p * utility(k, hits / 4, misses / 4, 2.0, 0.03)
    exact = utility(k, tp, fp, 2.0, 0.03)
    assert mean == pytest.approx(exact, abs=1e-12)
    assert abs(plugged - exact) > 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utility(2, 0.7, 0.4), r"chances must lie in \[0, 1\] together"),
        (lambda: utility(-1, 0.5, 0.4), "must not be negative"),
        (lambda: utility_of_samples(3, 1, 1, 4), "attempts must lie in 0 .. 3"),
        (lambda: utility_of_samples(3, 2, 2, 1), "make no sense"),
        (lambda: fit_saturation([1], [0.5]), "two numbers of samples"),
        (lambda: allocations({}, "smc"), "there are no runs"),
    ],
)
def test_arguments_that_make_no_sense(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("ceiling", "chance"), [(0.8, 0.3), (0.5, 0.02), (1.0, 0.9)])
def test_a_saturating_curve_is_fitted_exactly(ceiling: float, chance: float) -> None:
    numbers = [1, 2, 4, 8, 16, 32]
    found = fit_saturation(numbers, [ceiling * (1 - (1 - chance) ** n) for n in numbers])
    assert found.ceiling == pytest.approx(ceiling, abs=1e-4) and found.chance == pytest.approx(chance, abs=1e-4)
    assert found(numbers) == pytest.approx([ceiling * (1 - (1 - chance) ** n) for n in numbers], abs=1e-4)


# Solve or verify


def allocated(solutions: int, verdicts: int, compute: float, accuracy: float) -> Allocation:
    return Allocation(solutions, verdicts, compute, Interval(accuracy, accuracy, accuracy))


def test_reference_lines_have_the_published_exponents() -> None:
    solutions, verdicts = reference([100, 1600], allocated(4, 2, 100, 0.5))
    assert solutions.tolist() == pytest.approx([4, 4 * 16**0.57]) and verdicts.tolist() == pytest.approx([2, 2 * 16**0.39])


def test_the_frontier_of_runs(tmp_path: Any) -> None:
    """A run without verdicts and one whose reward is good: what is cheaper and more accurate is on the frontier, by plain comparison."""
    runs = {v: Results.read(write_run(tmp_path / str(v), skill=0.1 + v)) for v in (0, 2)}
    found = allocations(runs, "smc")
    assert [each.compute for each in found] == sorted(each.compute for each in found)
    assert {(each.solutions, each.verdicts) for each in found} == {(b, v) for v in (0, 2) for b in (1, 2, 4, 8)}
    for each in found:
        assert each.compute == runs[each.verdicts].mean_cost("smc", each.solutions)
        better = any(o.accuracy.value >= each.accuracy.value and o.compute < each.compute for o in found)
        assert each.best is not better
    assert frontier(found).axes
    with pytest.raises(ValueError, match="the run with 0 verdicts has no method 'dvts'"):
        allocations(runs, "dvts")
    with pytest.raises(ValueError, match="counts 'joules'"):
        allocations(runs, "smc", "joules")


# The report


def test_the_report_has_the_tables(tmp_path: Any) -> None:
    results = Results.read(write_run(tmp_path / "run"))
    rows = dict((row[0], row) for row in arise_rows(results))
    budgets = results.budgets("smc")
    correct = np.stack([results.table("smc", b) for b in budgets], -1)
    tokens = np.stack([results.table("smc", b, lambda r: r["cost"]["tokens_sampled"]) for b in budgets], -1)
    assert rows["smc"][2].startswith(f"{arise(correct, tokens).mean():+.3f}")
    ranked = {row[0]: row for row in ranking_rows(results)}
    pools = [(c, right) for (p, _), pool in results.samples.items() for c, right in zip(pool, results.right(p, pool), strict=True)]
    assert ranked["shorter solution"][1] == f"{auroc([-c.tokens for c, _ in pools], [right for _, right in pools]):.3f}"
    assert {row[0] for row in utility_rows(results)[1:]} >= {"last, 0", "min, 4", "model, 1"}
    less = abstention_rows(results)
    assert [row[0] for row in less[1:]] == ["importance, 8", "smc, 8"] and less[1][2].startswith("1.00 answered")
    told = repeated_words(results, [1, 2, 4, 8], [Interval(p, p, p) for p in (0.3, 0.45, 0.55, 0.6)])
    assert "TTSPM" in told and "PassUntil, which stops at 2 right samples" in told
    titles = [title for title, _ in tables(results)]
    assert any(title.startswith("Answering less often") for title in titles)
    assert wrong_step_rows(results) == [wrong_step_rows(results)[0]]  # of a task that checks none


def test_wrong_steps_behind_right_answers_by_hand() -> None:
    """Four right answers, of which two have wrong steps, one and two; the wrong answer's are not counted."""

    def record(problem: str, *given: tuple[str, int]) -> dict[str, Any]:
        return {
            "problem": problem,
            "method": SHARED,
            "budget": len(given),
            "seed": 0,
            "gold": "7",
            "correct": True,
            "candidates": [{"answer": a, "wrong_steps": n} for a, n in given],
        }

    records = [record("p", ("7", 0), ("7", 1), ("8", 5)), record("q", ("7", 2), ("7", 0), ("8", 0))]
    _, row = wrong_step_rows(Results(records))
    assert row[:2] == [f"{SHARED}, 3", "4"] and row[2].startswith("0.500") and row[3] == "0.75"


def test_the_demo_checks_its_steps() -> None:
    problem = next(iter(DemoTask().problems(1)))
    assert problem.checker is not None
    steps = problem.metadata["solution"].split("\n\n")
    assert problem.checker.labels(steps) == [True] * len(steps)
    assert problem.checker.labels([steps[0].replace("=", "= 1"), *steps[1:]])[0] is False
