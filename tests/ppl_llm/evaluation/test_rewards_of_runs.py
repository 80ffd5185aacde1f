"""Evaluations with other rewards than process reward models, and with none; texts kept for a look at what went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import held_out
from ppl_llm.evaluation import Models, evaluate
from ppl_llm.evaluation.failures import failures
from ppl_llm.evaluation.records import read_records
from ppl_llm.evaluation.report import STEPS, tables
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.tables import step_rows
from ppl_llm.evaluation.votes import from_record
from ppl_llm.reward.choice import RewardChoice
from ppl_llm.tasks import Problem

PROBLEMS = [Problem(str(i), problem.text, problem.answer) for i, problem in enumerate(held_out(4, 0))]


def test_what_the_names_mean() -> None:
    for models, reward, prm in [
        (Models(), "prm:demo", "demo"),
        (Models(lm="dir"), "none", None),
        (Models(reward="prm:demo-weak"), "prm:demo-weak", "demo-weak"),
        (replace(Models(), prm="dir"), "prm:dir", "dir"),
        (Models(reward="judge"), "judge", None),
    ]:
        assert (str(models.chosen_reward), models.named_prm) == (reward, prm)
    for wrong in ({"reward": "judge", "calibration": (1.0, 0.0)}, {"reward": "none", "prm_family": "qwen"}):
        with pytest.raises(ValueError, match="process reward model"):
            Models(**wrong).check()  # type: ignore[arg-type]


def test_a_vote_without_a_reward_asks_none(tmp_path: Path) -> None:
    models = Models(reward="none", max_steps=6, max_tokens=40, keep_texts=True)
    with pytest.raises(ValueError, match="method 'smc' needs a reward"):
        evaluate(PROBLEMS, models, tmp_path, methods=["self-consistency", "smc"], budgets=[2])
    evaluate(PROBLEMS, models, tmp_path, methods=["self-consistency"], budgets=[2, 4])
    records = list(read_records(tmp_path))
    assert {record["method"] for record in records} == {"importance", "self-consistency"}
    assert all(record["cost"].get("prm_calls", 0) == 0 for record in records)
    samples = [candidate for record in records for candidate in record.get("candidates", ())]
    assert len(samples) == 16 and all(c["log_odds"] == [] and c["text"] for c in samples)
    assert {c["weight"] for c in samples} == {0.25}
    results = Results.read(tmp_path)
    assert tables(results)
    found = dict(failures(results))
    wrong = sum(
        not results.is_right(r["problem"], c["answer"]) and c["answer"] is not None for r in records for c in r.get("candidates", ())
    )
    title = next(title for title in found if title.endswith("are wrong"))
    assert title == f"{wrong} of 16 solutions are wrong" and len(found[title]) == 1 + wrong
    shown = CliRunner().invoke(app, ["report", str(tmp_path), "--failures"])
    assert shown.exit_code == 0 and title in shown.stdout and "last line" in shown.stdout


def test_a_reward_that_no_method_asks_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are those of a run without a reward, so that weights by it may not be added to them later."""
    monkeypatch.setattr(RewardChoice, "load", loaded := Loaded())
    models = Models(prm="demo", max_steps=6, max_tokens=40)
    evaluate(PROBLEMS[:1], models, tmp_path / "vote", methods=["self-consistency"], budgets=[2])
    assert loaded.kinds == ["none"]
    configuration = json.loads((tmp_path / "vote" / "configuration.json").read_text())
    assert (configuration["reward"], configuration["prm"]) == ("none", None)
    assert evaluate(PROBLEMS[:1], models, tmp_path / "vote", methods=["self-consistency"], budgets=[2]).skipped == 1
    with pytest.raises(ValueError, match="reward: 'none' there, 'prm:demo' now"):
        evaluate(PROBLEMS[:1], models, tmp_path / "vote", methods=["importance"], budgets=[2])
    arguments = ["demo", "--limit", "1", "--methods", "self-consistency", "--budgets", "2", "--max-tokens-completion", "40"]
    told = CliRunner().invoke(app, ["evaluate", *arguments, "--reward", "judge", "--out", str(tmp_path / "told")])
    assert told.exit_code == 0 and "self-consistency asks no reward: judge is not loaded" in told.stderr


class Loaded:
    """Notes which rewards are loaded."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._load = RewardChoice.load

    def __get__(self, choice: RewardChoice, owner: type) -> Any:
        self.kinds.append(choice.kind)
        return partial(self._load, choice)


def test_steps_and_the_probability_of_no_answer_are_recorded(tmp_path: Path) -> None:
    """Lengths of the steps add up to that of the solution; a limit of eight tokens cuts solutions and steps."""
    models = Models(max_steps=6, max_tokens=5, max_tokens_completion=8)
    evaluate(PROBLEMS, models, tmp_path, methods=["importance", "smc"], budgets=[4])
    records = list(read_records(tmp_path))
    samples = [candidate for record in records for candidate in record["candidates"]]
    assert all(sum(c["steps"]) == c["tokens"] and max(c["steps"]) <= 5 for c in samples)
    assert all(c["cut_steps"] <= sum(n == 5 for n in c["steps"]) for c in samples) and any(c["cut_steps"] for c in samples)
    for record in records:
        mute = sum(c["weight"] for c in record["candidates"] if c["answer"] is None)
        assert record["no_answer"] == pytest.approx(mute, abs=1e-5), record
    results = Results.read(tmp_path)
    head, *rows = step_rows(results)
    lengths = [n for r in records if r["method"] == "smc" for c in r["candidates"] for n in c["steps"]]
    cut = sum(c["cut_steps"] for r in records if r["method"] == "smc" for c in r["candidates"]) / len(lengths)
    assert [row[0] for row in rows] == ["importance, 4", "smc, 4"] and len(head) == len(rows[1])
    whole = [c for r in records if r["method"] == "smc" for c in r["candidates"]]
    assert all(c.get("cut", False) == (c["tokens"] == 8) and not (c["finished"] and c.get("cut")) for c in samples)
    assert head[-2] == "cut by max_tokens_completion" and any(c.get("cut") for c in whole)
    share = f"{sum(c.get('cut', False) for c in whole) / len(whole):.1%}"
    assert rows[1][1:] == ["16", rows[1][2], f"{np.mean(lengths):.1f}{rows[1][3][3:]}", f"{cut:.1%}", share, "1.000"]
    assert all(from_record(c).cut == c.get("cut", False) and from_record(c).finished == c["finished"] for c in samples)
    assert dict(tables(results))[STEPS] == [head, *rows]


def test_a_verifier_s_certainty_is_recorded_in_finite_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def right(problem, text):\n    return 'boxed' in text\n")
    models = Models(reward=f"verifier:{file}:right", max_steps=6, max_tokens=40)
    evaluate(PROBLEMS[:2], models, tmp_path / "run", methods=["importance", "best-of-n"], budgets=[4])
    log_odds = [z for r in read_records(tmp_path / "run") for c in r.get("candidates", ()) for z in c["log_odds"]]
    assert log_odds and all(z in (1e9, -1e9) for z in log_odds)
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--failures"])
    assert shown.exit_code == 2 and "run evaluate with --keep-texts" in shown.stderr
