"""``solve --abstain`` and ``--explain``: no answer where none is probable enough, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ppl_llm.cli.errors import ABSTAINED
from tests.ppl_llm.cli import test_until

solve = test_until.solve
Solve = test_until.Solve


def flat(text: str) -> str:
    """As one line: the console breaks lines."""
    return " ".join(text.split())


VOTE = ["--method", "self-consistency", "--particles", "12", "--seed", "1"]


@pytest.mark.parametrize(("threshold", "code"), [("0.05", 0), ("0.99", ABSTAINED)])
def test_an_answer_of_too_little_probability_is_none(solve: Solve, threshold: str, code: int) -> None:
    plain = json.loads(solve("--json", "--seed", "1", first=0.4).stdout)
    result = solve("--json", "--seed", "1", "--abstain", threshold, first=0.4)
    assert result.exit_code == code
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["abstained"] is (code == ABSTAINED) and found["best_answer"] == plain["answer"]
    assert found["answer"] == (plain["answer"] if code == 0 else None)
    assert found["answers"] == plain["answers"] and found["best"] == plain["best"] and found["settings"]["abstain"] == float(threshold)
    assert "abstained" not in plain and "explanation" not in plain


def test_it_says_that_it_abstains_and_why(solve: Solve) -> None:
    found = json.loads(solve(*VOTE, "--json", first=0.4).stdout)
    best = max(each["probability"] for each in found["answers"])
    told = solve(*VOTE, "--abstain", "0.9", first=0.4)
    assert told.exit_code == ABSTAINED == 3
    assert f"No answer: the best one, {found['answer']}, has share of the votes {best:.3f}, less than --abstain 0.9" in flat(told.stdout)
    told = solve("--abstain", "0.99", "--seed", "1", first=0.4)
    assert "has probability 0." in flat(told.stdout) and "less than --abstain 0.99" in flat(told.stdout)


def test_it_says_why_this_answer(solve: Solve) -> None:
    found = json.loads(solve("--json", "--explain", "--seed", "1", first=0.4).stdout)
    told = flat(solve("--explain", "--seed", "1", first=0.4).stdout)
    explanation = found["explanation"]
    assert explanation["competitors"][0]["answer"] == found["answers"][0]["answer"]
    assert explanation["competitors"][0]["probability"] == pytest.approx(found["answers"][0]["probability"])
    assert "Why this answer" in told
    for line in explanation["lines"]:
        assert flat(line) in told
    assert explanation["log_evidence"] == pytest.approx(found["log_evidence"])


@pytest.mark.parametrize("method", ["best-of-n", "mcts", "best-first"])
def test_searches_that_give_their_best_alone_have_no_probability(solve: Solve, method: str) -> None:
    result = solve("--method", method, "--abstain", "0.3")
    assert result.exit_code == 2
    assert f"--abstain needs probabilities or votes of answers, and --method {method} gives its best solution alone" in result.stderr
