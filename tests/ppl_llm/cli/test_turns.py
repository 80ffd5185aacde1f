"""Judges, turns and programs with tests on the command line, on a small model whose tokenizer has the words Yes and No."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import example
from ppl_llm.tasks import Limits
from tests.helpers.tiny_models import write_talker

TEXT = example(1).text
FEW = ["--particles", "4", "--max-steps", "3"]
VERIFIER = """
import time
def says(problem, text):
    return "Right." if "boxed" in text else "Give the answer in a box."
def half(text):
    return 0.5
def fails(problem, text):
    raise RuntimeError("two\\nlines")
def hangs(problem, text):
    time.sleep(300)
def nan(problem, text):
    return float("nan")
"""


@pytest.fixture
def talker(tmp_path: Path) -> str:
    return str(write_talker(tmp_path / "talker"))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(VERIFIER)
    return str(path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["solve", TEXT, *FEW, *arguments])


def solved(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_judge_that_thinks(talker: str, file: str) -> None:
    judge = [
        "--lm",
        talker,
        "--reward",
        "judge",
        "--max-tokens",
        "8",
        "--max-tokens-completion",
        "16",
        "--thoughts",
        "2",
        "--thought-tokens",
        "4",
    ]
    ends = ["--finish", "(?s)."]  # with its first step: what the bound cuts is not judged as a whole
    report = solved(*judge, *ends)
    assert report["settings"]["reward"] == "judge (thoughts=2, thought_tokens=4)"
    report = solved(*judge, "--each-step", "--k-meta", "1", "--score", f"{file}:half")
    assert report["best"]["step_scores"] == pytest.approx([0.5] * len(report["best"]["step_scores"]))
    assert solved(*judge, *ends, "--agree", "0.8")["settings"]["reward"] == "judge (thoughts=2, agree=0.8, thought_tokens=4)"


def test_turns_with_feedback(talker: str, file: str) -> None:
    report = solved("--rounds", "2", "--feedback", f"verifier:{file}:says")
    assert (report["settings"]["rounds"], report["settings"]["feedback"]) == (2, f"verifier:{file}:says")
    assert report == {**solved("--rounds", "2", "--feedback", f"verifier:{file}:says"), "cost": report["cost"]}
    assert "rounds" not in solved()["settings"]
    quick = ["--max-tokens", "8", "--thoughts", "1", "--thought-tokens", "4"]
    judged = solved("--rounds", "2", "--feedback", f"judge:{talker}", *quick)
    assert judged["settings"]["reward"] == "prm:demo" and judged["settings"]["feedback"] == f"judge:{talker}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thoughts", "3"], "--thoughts is for a judge, and the reward is prm:demo"),
        (["--reward", "judge", "--agree", ".8"], "--agree is for a judge that thinks: give --thoughts K as well"),
        (["--reward", "judge", "--thoughts", "2", "--k-meta", "3"], "--k-meta must be at most --thoughts 2, got 3"),
        (["--reward", "judge", "--thoughts", "1", "--score", "9-1"], "--score must be a scale with its lower end first"),
        (["--reward", "judge"], "'Yes', a word of the judge, is 3 tokens"),
        (["--yes", "1"], "--yes is for a judge, and the reward is prm:demo"),
        (["--rounds", "2", "--feedback", "verifier:mine.py"], "--feedback 'verifier:mine.py' lacks a name: verifier:FILE.py:function"),
        (["--reward", "judge", "--thoughts", "1", "--score", "x"], "--score must be a scale such as 1-10"),
        (["--rounds", "0"], "--rounds must be an integer of at least 1, got 0"),
        (["--feedback", "judge"], "--feedback is about drafts, and with --rounds 1 there are none: give --rounds 2"),
        (["--rounds", "2", "--feedback", "jdge"], "--feedback must be verifier:FILE.py:function, judge, judge:DIR or tests, got 'jdge'"),
        (["--rounds", "2", "--feedback", "tests"], "--feedback from tests is for problems that have them: evaluate code:FILE"),
        (["--rounds", "2", "--feedback", "verifier:none.py:f"], "there is no file 'none.py'"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_a_verifier_that_fails_in_the_middle_loses_nothing(file: str) -> None:
    result = run("--reward", f"verifier:{file}:nan", "--max-steps", "6", "--json")
    assert result.exit_code == 1, result.output
    shown = json.loads(result.stdout)
    assert "it returned nan" in shown["failure"] and shown["best"]["steps"]
    table = run("--reward", f"verifier:{file}:nan", "--max-steps", "6")
    assert "Partial posterior over answers: failed after" in table.stdout


def test_what_a_function_raises_is_one_line(file: str) -> None:
    shown = json.loads(run("--reward", f"verifier:{file}:fails", "--max-steps", "6", "--json").stdout)
    assert "fails with RuntimeError: two lines, given" in shown["failure"]


def test_a_critic_that_fails_leaves_the_drafts(file: str) -> None:
    command = ["--rounds", "2", "--feedback", f"verifier:{file}:fails", "--max-steps", "6"]
    result = run(*command, "--json")
    assert result.exit_code == 1, result.output
    shown = json.loads(result.stdout)
    assert "RuntimeError: two lines" in shown["failure"] and shown["best"]["steps"] and shown["log_evidence"] == 0.0
    table = run(*command)
    assert "failed after 1 step\n" in table.stdout and "stopped at the drafts: no solution follows them yet" in table.stdout


def test_a_judge_with_words_of_its_own_model() -> None:
    """The demo model has no token for Yes. A reward of whole answers has no score of the steps before the end."""
    report = solved("--reward", "judge", "--yes", "1", "--no", "0", "--max-steps", "6")
    assert report["settings"]["reward"] == "judge (yes=1, no=0)"
    *before, last = report["best"]["step_scores"]
    assert before and set(before) == {None} and 0 < last < 1
    other = solved("--reward", "judge", "--yes", "0", "--no", "1", "--max-steps", "6")
    assert other["log_evidence"] != report["log_evidence"]
    table = run("--reward", "judge", "--yes", "1", "--no", "0", "--max-steps", "6").stdout
    assert all(step.strip() in table for step in report["best"]["steps"]) and "1.000" not in table.partition("Best solution")[2]


def test_feedback_from_tests_is_refused_for_problems_without_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_llm.evaluation.source.Models.load", lambda self: pytest.fail("a model is loaded"))
    command = ["evaluate", "demo", "--limit", "1", "--rounds", "2", "--feedback", "tests", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "--feedback from tests needs problems that have them" in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


PROGRAMS = [
    {"id": "add", "problem": "Write add(a, b).", "tests": ["assert add(1, 2) == 3"], "public_tests": "assert add(0, 0) == 0"},
    {"id": "sum", "problem": "Print the sum.", "tests": [{"input": "1 2", "output": "3"}]},
]


def test_programs_with_tests_are_evaluated_and_resumed(tmp_path: Path) -> None:
    """The demo model writes no programs: every verdict is that there is none. The records resume, and other tests are another run."""
    data = tmp_path / "programs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PROGRAMS))
    command = ["evaluate", f"code:{data}", "--methods", "self-consistency", "--budgets", "2", "--max-steps", "2", "--max-tokens", "8"]
    command += ["--rounds", "2", "--feedback", "tests", "--task-option", "isolation=limits", "--out", str(tmp_path / "run")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    records = (tmp_path / "run" / "records.jsonl").read_text()
    assert all(not json.loads(line)["correct"] for line in records.splitlines()) and len(records.splitlines()) == 4
    settings = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert settings["turns"]["rounds"] == 2 and settings["answer_fallback"] == "code" and settings["verifiers"][0]["isolation"] == "limits"
    assert CliRunner().invoke(app, command).exit_code == 0 and (tmp_path / "run" / "records.jsonl").read_text() == records
    data.write_text(data.read_text().replace("== 3", "== 4"))
    changed = CliRunner().invoke(app, command)
    assert changed.exit_code == 2 and "were made with other settings (problems:" in changed.stderr
    other = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "other"), "--rounds", "3"])
    assert other.exit_code == 0 and (tmp_path / "other" / "records.jsonl").read_text() != records


def test_a_task_refuses_a_machine_without_isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Limits) -> None:
        raise ValueError("programs cannot be run without network and with files read-only here (a reason)")

    monkeypatch.setattr(Limits, "check", refuse)
    data = tmp_path / "programs.jsonl"
    data.write_text(json.dumps(PROGRAMS[0]) + "\n")
    result = CliRunner().invoke(app, ["evaluate", f"code:{data}", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2 and "cannot be run without network" in result.stderr and not (tmp_path / "run").exists()


def test_turns_and_temperatures_are_refused_together(tmp_path: Path) -> None:
    """Before a model is loaded, and before a folder is made."""
    runner = CliRunner()
    found = runner.invoke(app, ["solve", "--method", "multi-temperature", "--rounds", "2", TEXT])
    message = "multi_temperature takes a model of reasoning(...) itself, and this is a RevisionModel"
    assert found.exit_code == 2 and message in found.stderr
    arguments = ["--methods", "multi-temperature", "--rounds", "2", "--limit", "1", "--budgets", "3", "--out", str(tmp_path / "run")]
    found = runner.invoke(app, ["evaluate", "demo", *arguments])
    assert found.exit_code == 2 and f"method 'multi-temperature': {message}" in found.stderr and not (tmp_path / "run").exists()


def test_why_every_unit_of_an_evaluation_failed_is_told(tmp_path: Path) -> None:
    """Not only that there is nothing to show."""
    file = tmp_path / "check.py"
    file.write_text("def fails(problem, draft):\n    raise KeyError('tests')\n")
    arguments = ["--methods", "smc", "--rounds", "2", "--feedback", f"verifier:{file}:fails", "--limit", "1", "--budgets", "2"]
    found = CliRunner().invoke(app, ["evaluate", "demo", *arguments, "--out", str(tmp_path / "run")])
    assert found.exit_code != 0 and "given up after three tries: smc, group 0, seed 0: ValueError: the verifier" in found.stderr
    assert "fails with KeyError: 'tests'" in found.stderr
