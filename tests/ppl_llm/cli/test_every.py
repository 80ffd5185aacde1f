"""``--every``: a factor at every position of a text. The language model writes one text only, so that the evidence is the product of the
factors, without Monte Carlo.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ppl_llm.cli.loading as loading
from ppl_llm import TabularLM
from ppl_llm.cli import app
from ppl_llm.evaluation import Models

TEXT = "ab a b\nab\n"
"""After the prompt "$": its four spaces and line breaks are where words end; the end of the text is one more token."""


def certain(text: str) -> TabularLM:
    """Writes one text: a table of as many symbols as the text has tokens, each followed by the next one."""
    size = len(text) + 1
    logits = torch.full((size, size), -torch.inf, dtype=torch.float64)
    logits[range(size), [(v + 1) % size for v in range(size)]] = 0.0
    return TabularLM(logits, [*text, "$"], eos="$")


@pytest.fixture
def solve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    critic = tmp_path / "critic.py"
    critic.write_text("def half(problem, text):\n    return 0.5\n")

    def run(*arguments: str, text: str = TEXT) -> Any:
        monkeypatch.setattr(loading, "load_lm", lambda *_, **__: certain(text))
        given = ["--lm", "table", "--reward", f"verifier:{critic}:half", "--finish", "never", "--particles", "2", *arguments]
        return CliRunner().invoke(app, ["solve", *given, "$"])

    return run


@pytest.mark.parametrize(
    ("every", "positions"),
    [("token", 11), ("word", 5), ("line", 3), ("b", 4), (None, 1)],
)
@pytest.mark.parametrize("method", ["smc", "importance", "smc:preset=exact"])
def test_there_is_a_factor_at_every_position(solve: Any, every: str | None, positions: int, method: str) -> None:
    """Of one half each; the last piece of the text has one, too."""
    given = [] if every is None else ["--every", every]
    result = solve("--json", "--method", method, *given)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["log_evidence"] == pytest.approx(positions * math.log(0.5), abs=1e-6)
    assert report["settings"].get("every") == every


def test_as_many_positions_as_tokens_by_default(solve: Any) -> None:
    """Where a step is a line, forty are a long solution; where it is a token, no solution at all."""
    report = json.loads(solve("--json", "--every", "token", text="ab" * 30).stdout)
    assert report["log_evidence"] == pytest.approx(61 * math.log(0.5), abs=1e-5) and report["finished"] == 2
    cut = json.loads(solve("--json", "--every", "token", "--max-steps", "40", text="ab" * 30).stdout)
    assert cut["finished"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--every", "lin"], "--every='lin': 'lin' is a regular expression for this very text; did you mean 'line'"),
        (["--every", "("], "--every='(': a stop pattern must be a regular expression"),
        (["--every", "word", "--stop", ";"], "--every='word' says where steps end; leave out stop"),
    ],
)
def test_mistakes_are_one_line(solve: Any, arguments: list[str], says: str) -> None:
    result = solve(*arguments)
    assert result.exit_code == 2 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_reward_model_of_steps_is_told_apart_from_a_critic_of_texts() -> None:
    problem = "Begin with 12. First: take away 5. Second: increase it by 3. What number do you get?"
    result = CliRunner().invoke(app, ["solve", "--every", "word", "--particles", "2", problem])
    assert result.exit_code == 0 and "--every word puts pieces of a line to demo as steps" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("every", "positions"), [("word", 5), (None, 1)])
def test_evaluations_have_positions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, every: str | None, positions: int) -> None:
    monkeypatch.setattr(Models, "_load_lm", lambda *_, **__: certain(TEXT))
    critic, data = tmp_path / "critic.py", tmp_path / "problems.jsonl"
    critic.write_text("def half(problem, text):\n    return 0.5\n")
    data.write_text(json.dumps({"problem": "$", "answer": "1"}) + "\n")
    given = [] if every is None else ["--every", every]
    reward = ["--lm", "table", "--reward", f"verifier:{critic}:half", "--finish", "never"]
    out = tmp_path / "runs"
    result = CliRunner().invoke(app, ["evaluate", str(data), "--out", str(out), *reward, "--methods", "smc", "--budgets", "2", *given])
    assert result.exit_code == 0, result.output
    (record,) = [line for path in out.rglob("*.jsonl") for line in map(json.loads, path.read_text().splitlines()) if "method" in line]
    assert record["log_evidence"] == pytest.approx(positions * math.log(0.5), abs=1e-6)
