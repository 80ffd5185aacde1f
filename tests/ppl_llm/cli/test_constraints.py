"""Constraints on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ppl_llm.cli.loading as loading
from ppl_llm import TabularLM, TabularReward
from ppl_llm.cli import app

SYMBOLS = ["a", "1", "2", "{", "}", "$"]
UNIFORM = TabularLM(torch.zeros(6, 6, dtype=torch.float64), SYMBOLS, eos="$")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loading, "load_lm", lambda *_, **__: UNIFORM)
    monkeypatch.setattr(loading, "load_prm", lambda *_, **__: TabularReward(torch.zeros(6)))
    return lambda *arguments: CliRunner().invoke(app, ["solve", "--lm", "table", "--prm", "table", *arguments, "a"])


@pytest.mark.parametrize("method", ["smc", "importance"])
def test_choices_are_all_that_is_written(run: Any, method: str) -> None:
    """Uniform tokens: evidence log(2 / 6^3 + 1 / 6^2) of the texts and their ends, and log 1/2 of the reward for one step."""
    result = run("--choices", "12,21,a", "--json", "--method", method, "--particles", "64")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["settings"]["constraint"] == "Choices(['12', '21', 'a'])"
    expected = float(torch.tensor((2 / 6**3 + 1 / 6**2) / 2).log())
    assert report["log_evidence"] == pytest.approx(expected, abs=0.1)
    assert {each["answer"] for each in report["answers"]} <= {"12", "21", "a"} and report["answer"] in ("12", "21", "a")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--choices", "1,2", "--method", "dvts"], "have no effect with --method dvts; they go with smc, importance"),
        (["--json-schema", "missing.json"], "missing.json"),
        (["--choices", "1,,2"], "not empty"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_grammars_on_the_command_line(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="the extra `constraints`")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [12, 21, {}]}')
    for arguments in (["--json-schema", str(schema)], ["--regex", "12|21|[{][}]"]):
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        assert "".join(json.loads(result.stdout)["best"]["steps"]) in ("12", "21", "{}")
    schema.write_text('{"type": "strin"}')
    result = run("--json-schema", str(schema))
    assert result.exit_code == 2 and "cannot be compiled" in result.stderr


def test_a_missing_package_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = run("--regex", "1*")
    assert result.exit_code == 2 and "pip install 'ppl-llm[constraints]'" in result.stderr and "Traceback" not in result.output
