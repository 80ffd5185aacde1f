"""What an evaluation refuses before a model is loaded, and what its records are told apart by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import held_out
from ppl_llm.evaluation import Models, evaluate
from ppl_llm.evaluation.records import read_records
from ppl_llm.evaluation.source import Models as Loaded
from ppl_llm.programs.turn_options import TurnOptions
from ppl_llm.reward.judge_options import JudgeOptions
from ppl_llm.tasks import Problem

PROBLEMS = [Problem(str(i), problem.text, problem.answer) for i, problem in enumerate(held_out(1, 0))]


def refusal(tmp_path: Path, *options: str) -> str:
    """The line of an evaluation that ends with one, and leaves no folder."""
    found = CliRunner().invoke(app, ["evaluate", "demo", "--limit", "1", "--out", str(tmp_path / "run"), *options])
    assert found.exit_code == 2 and not (tmp_path / "run").exists()
    lines = found.output.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "smc", "--wait", "Hm"), "--wait has no effect without --waits"),
        (("--methods", "smc:waits=0", "--wait", "Hm"), "--wait has no effect without --waits"),
        (("--methods", "self-consistency,deepconf", "--power", "2"), "--power 2 has no effect with --methods self-consistency,deepconf"),
        (("--methods", "smc,self-consistency:until=same:2", "--power", "2"), "method 'self-consistency:until=same:2': --power 2 has no"),
        (
            ("--methods", "smc,multi-temperature", "--rounds", "2", "--budgets", "3"),
            "method 'multi-temperature': multi_temperature takes",
        ),
        (("--methods", "multi-temperature", "--power", "2", "--budgets", "3"), "method 'multi-temperature': --power 2 has no effect"),
        (("--methods", "smc", "--rounds", "99999999"), "--rounds must be at most 1000"),
        (("--methods", "smc", "--waits", "99999999"), "waits must be at most 1024, the tokens of a solution"),
        (("--methods", "smc:waits=99999999"), "method 'smc:waits=99999999': waits must be at most 1024"),
        (("--methods", "smc", "--reward", "judge", "--thoughts", "99999999"), "--thoughts must be at most 1000"),
        (("--methods", "smc", "--confidence", "kl:\u00b2"), "confidence must be KIND, KIND:WINDOW or KIND:WINDOW:OVER"),
    ],
)
def test_what_has_no_effect_or_cannot_be(tmp_path: Path, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(self: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Loaded, "load", loaded)
    assert message in refusal(tmp_path, *options)


@pytest.mark.parametrize("where", ["reward", "feedback", "score"])
def test_a_file_that_has_changed_is_another_run(tmp_path: Path, where: str) -> None:
    """Records name the file; what it held is told by a digest."""
    file = tmp_path / "check.py"
    file.write_text("def right(*texts):\n    return 0.5\n")
    name, own = f"{file}:right", Models(max_steps=4, max_tokens=24)
    models = {
        "reward": replace(own, reward=f"verifier:{name}"),
        "feedback": replace(own, turns=TurnOptions(2, f"verifier:{name}")),
        "score": replace(own, turns=TurnOptions(2, "judge", JudgeOptions(thoughts=1, score=name))),
    }[where]
    before = models.files()
    assert list(before) == [str(file)]
    if where == "reward":
        evaluate(PROBLEMS, models, tmp_path / "run", methods=["best-of-n"], budgets=[1])
        evaluate(PROBLEMS, models, tmp_path / "run", methods=["best-of-n"], budgets=[1])
        records = list(read_records(tmp_path / "run"))
        file.write_text("def right(*texts):\n    return 0.6\n")
        with pytest.raises(ValueError, match="made with other settings \\(files: "):
            evaluate(PROBLEMS, models, tmp_path / "run", methods=["best-of-n"], budgets=[1, 2])
        assert list(read_records(tmp_path / "run")) == records
    file.write_text("def right(*texts):\n    return 0.7\n")
    assert models.files() != before and Models().files() == {}
