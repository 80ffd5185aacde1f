"""Adaptive budgets in evaluations: what was really drawn and paid is recorded for each problem, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppl_llm import TabularLM, TabularReward, reasoning
from ppl_llm.evaluation import RecordStore, Results
from ppl_llm.evaluation.report import accuracy_sections, tables
from ppl_llm.evaluation.tables import stopped_rows
from ppl_llm.evaluation.work import Unit, execute, plan
from ppl_llm.tasks import Problem

SYMBOLS = ["e", "h", "1", "2", "3", "$"]


def model() -> object:
    """The problem ``e`` is answered by 1 nearly always, ``h`` by each digit alike; then the solution ends."""
    logits = torch.full((6, 6), -torch.inf, dtype=torch.float64)
    logits[0, 2:5] = torch.tensor([0.99, 0.005, 0.005], dtype=torch.float64).log()
    logits[1, 2:5] = 0.0
    logits[2:, 5] = 0.0
    lm = TabularLM(logits, SYMBOLS, eos="$")
    return reasoning(lm, TabularReward(torch.zeros(6)), max_steps=3, max_tokens=2, stop=";", answer_fallback="text")


PROBLEMS = [Problem("p0", "e", "1", metadata={"level": 1}), Problem("p1", "h", "1", metadata={"level": 2}), Problem("p2", "e", "1")]
RULE = "self-consistency:until=beta:0.95"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder: Path = tmp_path_factory.mktemp("run")
    with RecordStore(folder, {"lm": "table", "num_problems": 3}) as store:
        for seed in (0, 1):
            for unit in plan(1, ["self-consistency", RULE, "smc:until=share:0.9:batch=2"], [8, 32], [seed]):
                store.append(execute(unit, model(), PROBLEMS))  # type: ignore[arg-type]
    return Results.read(folder)


def test_records_of_what_was_drawn(results: Results) -> None:
    for (method, budget), cells in results.by_key.items():
        for (problem, _), record in cells.items():
            if "until" not in method:
                assert "drawn" not in record
                continue
            assert record["num_samples"] == record["drawn"] == len(record["candidates"]) <= budget
            assert record["cost"]["tokens_sampled"] == 2 * record["drawn"] == sum(c["tokens"] for c in record["candidates"])
            assert record["stopped"] or record["drawn"] == budget
            if problem != "p1" and method == RULE:
                assert record["drawn"] <= 8 and record["correct"]
    hard = results.by_key[RULE, 32]["p1", 0]
    assert hard["drawn"] > 8


def test_the_same_unit_has_the_same_records() -> None:
    unit = Unit(0, (RULE,), (32,), 0)
    first, again = (execute(unit, model(), PROBLEMS) for _ in range(2))  # type: ignore[arg-type]
    assert [{**r, "seconds": 0} for r in first] == [{**r, "seconds": 0} for r in again]


def test_savings_are_paired(results: Results) -> None:
    """Tokens are two a solution: the saving is one less the mean number drawn over the budget."""
    drawn = results.table(RULE, 32, lambda record: float(record["drawn"]))
    saving = results.saving((RULE, 32), ("self-consistency", 32))
    assert saving.value == pytest.approx(1 - drawn.mean() / 32) and saving.low < saving.value < saving.high
    easy = results.saving((RULE, 32), ("self-consistency", 32), ["p0", "p2"])
    assert easy.value == pytest.approx(1 - drawn[[0, 2]].mean() / 32) and easy.value >= 0.75
    assert results.difference((RULE, 32), ("self-consistency", 32), ["p0", "p2"]).value == 0.0


def test_reports_say_what_was_used(results: Results) -> None:
    head, *rows = stopped_rows(results)
    assert head[2:6] == ["completions drawn", "stopped", "tokens", "tokens saved"] and len(rows) == 4
    of_rule = next(row for row in rows if row[:2] == [RULE, "32"])
    drawn = results.table(RULE, 32, lambda record: float(record["drawn"])).mean()
    assert of_rule[2] == f"{drawn:.1f}" and of_rule[4] == f"{2 * drawn:,.0f}" and of_rule[5].startswith("0.")
    filters = next(row for row in rows if row[0].startswith("smc"))
    assert filters[5:] == ["", ""]  # there is no run of the whole budget to compare with
    assert any("Budgets really used" in title for title, _ in tables(results))
    cost = next(section for section in accuracy_sections(results) if section.title == "Cost")
    assert "Budgets really used" in str(cost.blocks[-1]) and "tokens" in str(cost.blocks[0])
