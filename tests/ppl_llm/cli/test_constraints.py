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
        (["--choices", "1,2", "--method", "dvts"], "have no effect with --method dvts; they go with smc, power-smc, importance"),
        (["--json-schema", "missing.json"], "missing.json"),
        (["--choices", "1,,2"], "not empty"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_schema_that_is_no_text_is_named(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b"\xff\xfe{")
    result = run("--json-schema", str(path))
    assert result.exit_code == 2 and "--json-schema" in result.stderr and "not text in UTF-8: invalid start byte at byte 0" in result.stderr


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


def test_a_constraint_needs_no_reward(run: Any) -> None:
    """The evidence is the probability of the texts by themselves."""
    arguments = ["solve", "--lm", "table", "--reward", "none", "--choices", "12,21,a", "--json", "--particles", "64", "a"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "weighed by the constraint alone" in result.stderr
    assert json.loads(result.stdout)["log_evidence"] == pytest.approx(float(torch.tensor(2 / 6**3 + 1 / 6**2).log()), abs=0.1)


def test_texts_that_do_not_end_are_told(run: Any) -> None:
    result = run("--choices", "1" * 60, "--max-steps", "2", "--max-tokens", "5", "--particles", "4", "--stop", "2")
    assert result.exit_code == 0, result.output
    assert "100% of the weight lies on solutions that were cut off" in " ".join(result.stderr.split())
    assert "cut off" not in run("--choices", "12", "--particles", "4").stderr


def test_values_of_a_schema_hold_no_more_whitespace_than_tidy_ones(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="the extra `constraints`")
    from ppl_llm.constraints.choice import constraint_of
    from ppl_llm.constraints.grammar import TIDY

    constraint = constraint_of('{"type": "array", "items": {"const": 1}}')
    assert repr(constraint).endswith(f"whitespace={TIDY!r})")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [1, 12]}')
    report = json.loads(run("--json-schema", str(schema), "--json").stdout)
    assert report["answer"] in ("1", "12")
