"""Recommendations from records made by hand."""

from __future__ import annotations

import pytest

from ppl_llm.evaluation.recommend import agreement, classes, recommend
from ppl_llm.evaluation.results import Results
from tests.ppl_llm.evaluation.test_results import record, sample


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
    assert all(choice.accuracy.value == 1.0 for choice in rich) and rich[1].budget == 64
    with pytest.raises(ValueError, match=r"at most 5 tokens per problem; the cheapest takes 40"):
        recommend({"run": found}, tokens=5)


def test_difficulty_needs_samples() -> None:
    with pytest.raises(ValueError, match="add --methods importance"):
        recommend({"run": Results([record("p", "smc", 4, 0, True)])}, tokens=100)
