"""Thinking budgets from the command line, and what a run says about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import example
from ppl_llm.evaluation import Candidate, Results
from ppl_llm.evaluation.aggregators import Thought
from ppl_llm.evaluation.thinking import NEVER_CLOSED, length_rows, thinking_rows, thinking_tables
from ppl_llm.evaluation.votes import as_record, from_record

PROBLEM = example(1).text
TAG = ["--close", "\\n\\n"]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_solve_thinks() -> None:
    """The demo model's first step is its thinking; the tag stands for a blank line, which is written behind twelve tokens."""
    found = invoke("solve", *TAG, "--max-thinking", "6", "--particles", "4", "--json", PROBLEM)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["settings"]["close"] == "\n\n" and told["settings"]["max_thinking"] == 6 and told["settings"]["waits"] == 0
    assert told["best"]["steps"][0].endswith("\n\n") and len(told["best"]["steps"]) > 1 and told["answer"] is not None


def test_a_model_that_does_not_think_is_one_line_and_nothing_is_lost() -> None:
    found = invoke("solve", "--waits", "1", "--particles", "4", PROBLEM)
    assert found.exit_code == 0 and "Best solution" in found.stdout
    assert "100% of the weight lies on solutions that never closed their thinking with '</think>'" in found.stderr
    assert found.stderr.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--waits", "-1"], "--waits must be an integer of at least 0, got -1"),
        (["--max-thinking", "0"], "--max-thinking must be None or an integer of at least 1, got 0"),
        (["--thinking", "maybe"], "--thinking must be on or off, got 'maybe'"),
        (["--thinking", "off", "--waits", "1"], "--thinking=off and a budget of thinking do not go together"),
        (["--thinking", "on"], "template option 'enable_thinking' has no effect: the chat template has no such switch"),
        (["--waits", "1", "--wait", "a</think>"], "has the closing tag '</think>' in it"),
        (["--waits", "1", "--method", "smc:waits=2"], "--waits and --method smc:waits=2 both set waits; give it once"),
        (["--max-thinking", "1020"], "max_thinking must leave room for the closing tag"),
        (["--wait", "x"], "--wait has no effect without --waits"),
        (["--wait", "x", "--close", "y"], "--wait has no effect without --waits"),
        (["--waits", "1", "--regex", "a*"], "a constraint and a thinking budget do not go together"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    found = invoke("solve", *arguments, PROBLEM)
    assert found.exit_code == 2 and message in found.stderr and found.stderr.strip().count("\n") == 0, found.output


def test_evaluate_records_thinking_and_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    methods = "smc:waits=0,smc:waits=1,importance"
    arguments = ["evaluate", "demo", *TAG, "--wait", " and", "--limit", "2", "--max-steps", "6", "--max-tokens", "40", "--out", str(folder)]
    done = invoke(*arguments, "--methods", methods, "--budgets", "1,2")
    assert done.exit_code == 0, done.output
    assert "tokens of thinking" in done.stdout and "Accuracy of single samples by how long they think" in done.stdout
    before = (folder / "records.jsonl").read_text()
    again = invoke(*arguments, "--methods", methods, "--budgets", "1,2")
    assert again.exit_code == 0 and (folder / "records.jsonl").read_text() == before
    other = invoke(*arguments, "--methods", methods, "--budgets", "1,2", "--max-thinking", "5")
    assert other.exit_code == 2 and "max_thinking: None there, 5 now" in other.stderr
    results = Results.read(folder)
    for (method, _), cells in results.by_key.items():
        for found in cells.values():
            thoughts = [c["thinking"] for c in found.get("candidates", ())]
            assert all(t["waits"] == int(method == "smc:waits=1") and t["closed"] == "model" for t in thoughts)
            if thoughts:
                assert found["cost"]["thinking_tokens"] == sum(t["tokens"] for t in thoughts) > 0
    assert invoke("report", str(folder)).exit_code == 0
    assert (folder / "accuracy-against-thinking.svg").exists() and "Thinking" in (folder / "report.html").read_text()


def made_up(thoughts: list[tuple[Thought, bool]]) -> Results:
    """A run of one problem with these samples, and whether each is right."""
    candidates = [as_record(Candidate("7" if right else "1", thinking=thought)) for thought, right in thoughts]
    shared = {"problem": "p", "seed": 0, "gold": "7", "level": None, "correct": True, "answers": {}, "no_answer": 0.0}
    cost = {"thinking_tokens": sum(thought.tokens for thought, _ in thoughts)}
    return Results([{**shared, "method": "importance", "budget": len(thoughts), "candidates": candidates, "cost": cost}])


def test_rows_by_hand() -> None:
    ends: list[str | None] = ["model", "bound", "model", None]
    results = made_up([(Thought(10 * (n + 1), n % 2, ends[n]), n > 1) for n in range(4)])
    _, row = thinking_rows(results)
    assert row[:6] == ["importance, 4", "4", "25.0 (13, 25, 37; 40)", "0.50", "25.0%", "25.0%"]
    head, *rows = length_rows(results)
    assert head[0] == "tokens of thinking" and [row[:2] for row in rows] == [
        ["10 to 17", "1"],
        ["18 to 24", "1"],
        ["25 to 32", "1"],
        ["33 to 40", "1"],
    ]
    assert [row[2].partition(" ")[0] for row in rows] == ["0.000", "0.000", "1.000", "1.000"]
    assert not thinking_tables(results)[0][0].endswith(NEVER_CLOSED)


def test_thinking_that_is_never_closed_is_said() -> None:
    results = made_up([(Thought(10, 0, None), False)] * 3)
    assert thinking_tables(results)[0][0].endswith(NEVER_CLOSED)
    assert [row[:2] for row in length_rows(results)[1:]] == [["10", "3"]]


def test_a_thought_survives_the_record() -> None:
    for thought in (None, Thought(12, 1, "bound"), Thought(3, 0, None)):
        kept = from_record(json.loads(json.dumps(as_record(Candidate("7", thinking=thought)))))
        assert kept.thinking == thought
    assert np.isfinite(as_record(Candidate("7"))["weight"])
