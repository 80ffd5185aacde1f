"""Recommendations from records made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl_llm.evaluation.recommend import agreement, classes, recommend
from ppl_llm.evaluation.results import Results
from tests.helpers.runs import record, sample
from tests.helpers.wrong_statistics import accuracy_of_the_luckiest


def run() -> Results:
    """Six problems: on the three on which samples agree voting is right, on the others only the filter is."""
    rows = []
    for i in range(6):
        easy = i >= 3
        pool = [sample("1", 1.0)] * (4 if easy else 1) + [sample(str(k + 2), 1.0) for k in range(0 if easy else 3)]
        rows.append(record(f"p{i}", "importance", 4, 0, easy, candidates=pool))
        rows.append(record(f"p{i}", "smc", 4, 0, not easy))
        rows.append(record(f"p{i}", "smc", 64, 0, True))
    return Results(rows)


def test_the_best_affordable_method_of_each_class() -> None:
    found = run()
    assert agreement(found) == {f"p{i}": 0.25 if i < 3 else 1.0 for i in range(6)}
    assert [len(part) for _, part in classes(agreement(found))] == [2, 2, 2]
    cheap = recommend({"run": found}, tokens=50)
    assert (cheap[0].method, cheap[0].accuracy.value, cheap[-1].method, cheap[-1].accuracy.value) == ("smc", 1.0, "importance", 1.0)
    rich = recommend({"run": found}, tokens=10_000)
    assert [choice.budget for choice in rich] == [4, 64, 4]
    # The middle class has one problem of each kind: what either would choose is wrong on the other.
    assert [choice.accuracy.value for choice in rich] == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"at most 5 tokens per problem; the cheapest takes 40"):
        recommend({"run": found}, tokens=5)


def test_difficulty_needs_samples() -> None:
    with pytest.raises(ValueError, match="add --methods importance"):
        recommend({"run": Results([record("p", "smc", 4, 0, True)])}, tokens=100)


def equal_options(seed: int, problems: int = 60, options: int = 24) -> Results:
    """Options that are right half of the time, whatever the problem."""
    rng = np.random.default_rng(seed)
    rows = [record(f"p{i}", "importance", 1, 0, bool(rng.random() < 0.5), candidates=[sample("1", 1.0)]) for i in range(problems)]
    rows += [record(f"p{i}", f"m{j}", 4, 0, bool(rng.random() < 0.5)) for j in range(options - 1) for i in range(problems)]
    return Results(rows)


def test_the_best_of_equal_options_is_no_better_than_they_are() -> None:
    """24 options of accuracy .5, three classes of 20 problems: the luckiest of them is at .72. Standard error of the mean of 60 data
    sets: 0.008."""
    stated, luckiest = [], []
    for seed in range(60):
        results = equal_options(seed)
        found = recommend({"run": results}, tokens=1000)
        stated += [choice.accuracy.value for choice in found]
        hardest = classes(agreement(results))[0][1]
        luckiest.append(accuracy_of_the_luckiest(results.restricted(hardest, results.seeds)))
    assert np.mean(stated) == pytest.approx(0.5, abs=0.03)
    assert np.mean(luckiest) > 0.68


def test_a_better_option_is_found_and_stated() -> None:
    rows = [record(f"p{i}", "importance", 4, 0, i % 2 == 0, candidates=[sample("1", 1.0)] * 4) for i in range(30)]
    found = recommend({"run": Results([*rows, *(record(f"p{i}", "smc", 4, 0, i % 10 != 0) for i in range(30))])}, tokens=100)
    assert {choice.method for choice in found} == {"smc"} and np.mean([choice.accuracy.value for choice in found]) == pytest.approx(0.9)


def test_a_class_of_one_problem_has_no_estimate() -> None:
    found = recommend({"run": Results([record("p", "importance", 4, 0, True, candidates=[sample("1", 1.0)])])}, tokens=100)
    assert found[0].method == "importance" and math.isnan(found[0].accuracy.value)


def test_a_problem_that_the_option_gave_up_is_counted() -> None:
    """The filter is better, and has no record of one of six problems; samples of one answer each make one class of agreement."""
    rows = [record(f"p{i}", "importance", 4, 0, False, candidates=[sample("1", 1.0)]) for i in range(6)]
    found = recommend({"run": Results([*rows, *(record(f"p{i}", "smc", 4, 0, True) for i in range(5))])}, tokens=100)
    assert [choice.missing for choice in found] == ["", "", "1 of 2 problems"]
