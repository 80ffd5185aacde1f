"""``--power``, ``--bridge`` and moves on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import example

TEXT = example(1).text


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["solve", TEXT, "--reward", "none", *arguments])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "power-smc", "--particles", "4"], ("power-smc", 4.0, None)),
        (["--method", "power-smc:moves=1", "--particles", "4", "--audit"], ("power-smc", 4.0, None)),
        (["--method", "smc", "--power", "2", "--bridge", "3", "--particles", "4", "--moves", "1", "--move-every", "2"], ("smc", 2.0, 3)),
        (["--method", "power-mh", "--iterations", "4", "--warmup", "2"], ("power-mh", 4.0, None)),
        (["--method", "suffix-mh:power=3", "--iterations", "4", "--warmup", "2"], ("suffix-mh", 3.0, None)),
        (["--method", "power-smc", "--power", "2", "--particles", "4", "--top-p", "0.9"], ("power-smc", 2.0, None)),
    ],
)
def test_a_power_needs_no_reward(arguments: list[str], expected: tuple[str, float, int | None]) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    settings = report["settings"]
    assert (settings["method"], settings["power"], settings["bridge"]) == expected and settings["reward"] == "none"
    assert report["answers"] and report["cost"].get("prm_calls", 0) == 0


def test_a_reward_that_there_is_counts() -> None:
    result = CliRunner().invoke(app, ["solve", TEXT, "--method", "power-smc", "--particles", "4", "--json"])
    report = json.loads(result.stdout)
    assert report["settings"]["reward"] == "prm:demo" and report["cost"]["prm_calls"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--power", "0", "--method", "power-smc"], "--power must be a finite number above 0, got 0.0"),
        (["--power", "3", "--method", "smc:power=2"], "--power and --method smc:power=2 both set the power; give it once"),
        (["--bridge", "0", "--method", "power-smc"], "--bridge must be a number of steps, at least 1"),
        (
            ["--method", "importance", "--reward", "confidence", "--bridge", "3"],
            "--bridge has no effect without a power: give --power",
        ),
        (["--method", "smc:bridge=3", "--reward", "confidence"], "bridge=3 has no effect without a power"),
        (["--method", "power-smc", "--move-every", "2"], "--move-every has no effect without moves"),
        (["--method", "smc"], "--method smc needs a reward"),
        (["--method", "smc", "--power", "1"], "--method smc needs a reward"),
        (["--method", "power-smc", "--moves", "-1"], "moves must be an integer of at least 0"),
        (["--method", "particle-gibbs", "--power", "2", "--moves", "1"], "--moves has no effect with --method particle-gibbs"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
