"""Tasks with verifiers: what they judge, in which process, and what they say to mistakes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.tasks import DemoTask, Problem, ReasoningGymTask, RowTask, Task, Verifier, reasoning_gym_task
from ppl_llm.tasks.load import load_problems, open_task
from tests.helpers.fake_gym import fake_gym

PROBLEMS = [("one plus one", "2", 1), ("ten plus sixteen", "26", 2), ("one minus six", "-5", 1)]


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with fake_gym(monkeypatch, tmp_path / "site", PROBLEMS):
        yield


def test_without_a_verifier_answers_are_compared() -> None:
    problem = Problem("p", "1+1?", "2")
    assert problem.is_right("2") and problem.is_right(2) and not problem.is_right("2.0") and not problem.is_right(None)
    assert not Problem("q", "open").is_right("None") and problem.verdicts(["2"]) == {}


def test_problems_and_verdicts(gym: None) -> None:
    task = open_task("reasoning-gym:sums", {"seed": 4, "level": "steps", "instruction": ""})
    assert isinstance(task, Task)
    problems = list(task.problems())
    assert [p.id for p in problems] == ["sums-4-0", "sums-4-1", "sums-4-2"] and problems == list(task.problems())
    assert [(p.text, p.answer, p.metadata) for p in problems][1] == ("ten plus sixteen", "0x1a", {"level": 2})
    verifier = problems[1].verifier
    assert isinstance(verifier, Verifier)
    assert problems[1].verdicts(["26", "26", None, "-26", "0b11010", "27", "no number"]) == {
        "26": 1.0,
        "-26": 0.5,
        "0b11010": 1.0,
        "27": 0.0,
        "no number": 0.0,  # its verifier raises
    }
    assert problems[1].is_right("26") and not problems[1].is_right("-26")  # half right is wrong
    assert problems[1].answer != "26"  # a comparison as text would call it wrong
    assert verifier.description == {
        "task": "reasoning-gym:sums",
        "options": {"seed": 4, "size": 500},  # the others are the defaults of this version
        "version": "9.9",
    }
    assert len(list(task.problems(2))) == 2 and [p.text for p in load_problems("reasoning-gym:sums", limit=1)] == [
        f"one plus one\n\n{reasoning_gym_task.INSTRUCTION}"
    ]


def test_problems_travel_as_names(gym: None) -> None:
    """To a process that has only what the problem holds, and hashes otherwise."""
    problems = list(open_task("reasoning-gym:orders", {"size": 1}).problems())
    sent = pickle.dumps(problems)
    assert b"Sums" not in sent and b"Orders" not in sent
    script = (
        "import pickle, sys, json\nfrom ppl_llm.tasks.load import open_task\n"
        f"sent = pickle.loads({sent!r})\n"
        "again = list(open_task('reasoning-gym:orders', {'size': 1}).problems())\n"
        "print(json.dumps([sent == again, sent[0].is_right('2'), sent[0].is_right('3')]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONHASHSEED": "7",
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[3])]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [True, True, False]


def test_configurations_that_json_does_not_hold_and_problems_that_cannot_be_made(gym: None) -> None:
    task = open_task("reasoning-gym:days", {"level": "difficulty"})
    (problem,) = task.problems(1)
    assert "after 2000-01-02" in problem.text and problem.metadata == {"level": 1.5} and problem.is_right("2") and not problem.is_right("3")
    with pytest.raises(ValueError, match="problem 1: RuntimeError: no more days"):
        list(task.problems(2))


def test_a_verifier_that_does_not_end(gym: None, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = next(open_task("reasoning-gym:sums").problems())
    process = reasoning_gym_task._worker()
    monkeypatch.setattr(process, "timeout", 0.5)
    assert not problem.is_right("forever") and process.timeouts == 1
    monkeypatch.setattr(process, "timeout", 60.0)
    assert problem.is_right("2")  # by a new process


def test_mistakes(gym: None) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("reasoning-gym:sum", {}, "unknown task of reasoning-gym 'sum'; did you mean 'sums'"),
        ("reasoning-gym:sums", {"bse": 2}, "unknown option of reasoning-gym:sums 'bse'; did you mean 'base'"),
        ("reasoning-gym:sums", {"base": 3}, "AssertionError: base must be 2 or 16"),
        ("reasoning-gym:sums", {"size": 0}, "size of reasoning-gym:sums must be an integer of at least 1, got 0"),
        ("reasoning-gym:sums", {"seed": "x"}, "seed of reasoning-gym:sums must be an integer of at least 0, got 'x'"),
        ("reasoning-gym:sums", {"level": "step"}, "unknown level of reasoning-gym:sums 'step'; did you mean 'steps'"),
        ("demo", {"split": "test"}, "the task 'demo' has no options, got 'split'"),
        ("x.jsonl", {"splitt": "test"}, r"unknown option of 'x.jsonl' 'splitt'; did you mean 'split'"),
    ]
    for name, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            list(open_task(name, options).problems())
    with pytest.raises(ValueError, match="unknown option of reasoning-gym:sums 'answer'"):
        load_problems("reasoning-gym:sums", answer="gold")


def test_another_version_does_not_judge(gym: None) -> None:
    problem = next(open_task("reasoning-gym:sums").problems())
    assert problem.verifier is not None
    object.__setattr__(problem.verifier, "version", "0.1")
    with pytest.raises(ValueError, match=r"the problems are of version 0\.1, but here is 9\.9; install the same"):
        problem.is_right("2")


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym_task, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'"ppl-llm\[reasoning-gym\]"'):
        ReasoningGymTask("chain_sum")


def test_options_on_the_command_line(tmp_path: Path) -> None:
    """Fields by other names, and a right answer within a solution, as in gsm8k."""
    rows = [{"q": p.text, "solution": f"So it is.\n#### {p.answer}"} for p in load_problems("demo", limit=2)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["evaluate", str(tmp_path / "data.jsonl"), "--methods", "importance", "--budgets", "1", "--max-steps", "1"]
    command += ["--out", str(tmp_path / "run"), "--limit", "1"]

    def run(*options: str) -> Any:
        return CliRunner().invoke(app, [*command, *(part for option in options for part in ("--task-option", option))])

    assert run("problem=q", "answer=solution", "extract=true").exit_code == 0
    (record,) = map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    assert record["gold"] == next(load_problems("demo")).answer
    for options, message in (
        (["problem"], "--task-option must be NAME=VALUE, such as seed=3, got 'problem'"),
        (["problm=q"], "did you mean 'problem'"),
        (["problem=q", "answer=q", "extract=true"], "line 1: no answer is found in the solution"),
    ):
        refused = run(*options)
        assert refused.exit_code == 2 and message in refused.stderr


def test_all_kinds_are_tasks(gym: None) -> None:
    assert all(isinstance(task, Task) for task in (DemoTask(), RowTask([]), ReasoningGymTask("sums")))


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "graph_color", "gsm_symbolic", "time_intervals", "word_ladder"])
def test_the_library_itself(name: str) -> None:
    """Where it is installed: with one right answer, several, no known one, and problems that follow the order of a set."""
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (extra: reasoning-gym)")
    reasoning_gym_task._worker.cache_clear()
    problems = list(open_task(f"reasoning-gym:{name}", {"size": 3, "seed": 5}).problems())
    assert len({p.id for p in problems}) == 3 and len({p.text for p in problems}) == 3
    reasoning_gym_task._worker.cache_clear()
    assert list(open_task(f"reasoning-gym:{name}", {"size": 3, "seed": 5}).problems()) == problems
    for problem in problems:
        assert problem.answer is None or problem.is_right(problem.answer)
        assert not problem.is_right("{") and not problem.is_right("nonsense")
    assert (problems[0].answer is None) == (name == "graph_color")
    reasoning_gym_task._worker.cache_clear()
