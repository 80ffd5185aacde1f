"""Confidence from the command line: as a reward, as a vote, and in records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import example
from ppl_llm.evaluation import Results, deepconf_vote

PROBLEM = example(1).text


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def solved(*arguments: str) -> dict[str, Any]:
    result = invoke("solve", *arguments, "--particles", "8", "--json", PROBLEM)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_reward_in_windows() -> None:
    told = solved("--reward", "confidence:margin:8:least")
    assert told["settings"]["reward"] == "confidence:margin:8:least"
    assert all(0 < score < 1 for score in told["best"]["step_scores"]) and told["cost"].get("prm_forwards", 0) == 0


def test_a_vote_of_the_surest() -> None:
    told = solved("--method", "deepconf", "--eta", "0.25")
    assert told["settings"]["confidence"] == "top-k:2048:bottom" and "DeepConf gives no evidence" in told["no_evidence"]
    assert sum(answer["probability"] > 0 for answer in told["answers"]) <= 2
    online = solved("--method", "deepconf:confidence=log-prob", "--initial", "4", "--eta", "0.25")
    assert online["cost"]["tokens_sampled"] < told["cost"]["tokens_sampled"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "confidence:top_k"], "unknown kind 'top_k'; did you mean 'top-k'"),
        (["--reward", "confidence:kl:tail"], "over='tail' needs a window, such as 64"),
        (["--method", "deepconf", "--confidence", "kl:0"], "window must be None or an integer of at least 1, got 0"),
        (["--method", "deepconf", "--initial", "16"], "--initial must be less than --particles 16, got 16"),
        (["--method", "deepconf", "--eta", "2"], "eta must lie in [0.001, 1], got 2.0"),
        (["--eta", "0.5"], "--eta has no effect with --method smc; it goes with deepconf"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    found = invoke("solve", *arguments, PROBLEM)
    assert found.exit_code == 2 and message in found.stderr and found.stderr.strip().count("\n") == 0, found.output


def test_evaluate_records_it(tmp_path: Path) -> None:
    """By itself for the method, else by name; votes of the report are those of the records."""
    common = ["--limit", "2", "--budgets", "4", "--max-steps", "6", "--max-tokens", "40"]
    for n, arguments in enumerate((["--methods", "importance,deepconf"], ["--methods", "importance", "--confidence", "kl:8:bottom"])):
        folder = tmp_path / str(n)
        done = invoke("evaluate", "demo", *arguments, *common, "--out", str(folder))
        assert done.exit_code == 0, done.output
        assert "deepconf, 10 %" in done.stdout and "borda, confidence" in done.stdout
        results = Results.read(folder)
        pools = list(results.samples.values())
        assert all(candidate.confidence is not None and candidate.confidence > 0 for pool in pools for candidate in pool)
        if n == 0:
            chosen = [record["answer"] for record in results.by_key["deepconf", 4].values()]
            assert chosen == [deepconf_vote(pool) for pool in pools]
