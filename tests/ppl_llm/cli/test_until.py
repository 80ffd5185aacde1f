"""``solve --until``: budgets that adapt on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ppl_llm.cli.loading as loading
from ppl_llm import TabularLM, TabularReward
from ppl_llm.cli import app
from ppl_llm.methods import get_method, parse_method
from ppl_llm.methods.options import parse_until

SYMBOLS = ["a", "1", "2", "3", "\n\n", "$"]


def table(first: float) -> TabularLM:
    """Writes one of the digits, the first with this probability, and ends."""
    logits = torch.full((6, 6), -torch.inf, dtype=torch.float64)
    rest = (1 - first) / 2
    logits[0, 1:4] = torch.tensor([first, rest, rest], dtype=torch.float64).log()
    logits[1:, 5] = 0.0
    return TabularLM(logits, SYMBOLS, eos="$")


Solve = Callable[..., Any]


@pytest.fixture
def solve(monkeypatch: pytest.MonkeyPatch) -> Solve:
    def run(*arguments: str, first: float = 0.98, lm: TabularLM | None = None) -> Any:
        monkeypatch.setattr(loading, "load_lm", lambda *_, **__: lm or table(first))
        monkeypatch.setattr(loading, "load_prm", lambda *_, **__: TabularReward(torch.tensor([0.0, 2.0, 0.5, -1.0, 0.0, 3.0])))
        fixed = ["--lm", "table", "--prm", "table", "--answer-fallback", "text"]
        return CliRunner().invoke(app, ["solve", *fixed, *arguments, "a"])

    return run


def report(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("arguments", "drawn"),
    [
        (["--until", "beta:0.95", "--method", "self-consistency"], 4),
        (["--until", "beta:0.99", "--method", "self-consistency", "--batch", "2"], 6),
        (["--until", "same:3", "--method", "self-consistency", "--batch", "1"], 3),
        (["--until", "share:0.75", "--method", "self-consistency", "--batch", "2", "--doubling"], 2),
        (["--until", "beta:0.95"], 16),  # four filters of 4
        (["--until", "share:0.75", "--batch", "3", "--particles", "64"], 6),  # two filters of 3
        (["--method", "importance:until=beta:0.9:batch=5", "--particles", "20"], 5),
    ],
)
def test_a_settled_vote_ends_the_run(solve: Solve, arguments: list[str], drawn: int) -> None:
    """A model that nearly always writes 1."""
    found = report(solve(*arguments, "--json", "--seed", "1"))
    assert (found["num_drawn"], found["stopped"], found["answer"]) == (drawn, True, "1")
    assert found["log_evidence"] is None and "is biased" in found["no_evidence"] and found["unit"] == "batch"
    assert found["particles"] == drawn and found["cost"]["tokens_sampled"] == 2 * drawn


def test_an_open_vote_takes_the_whole_budget(solve: Solve) -> None:
    found = report(solve("--until", "beta:0.999", "--method", "self-consistency", "--particles", "10", "--json", first=0.34))
    assert (found["num_drawn"], found["stopped"], found["batches"]) == (10, False, 3)
    told = solve("--until", "beta:0.999", "--method", "self-consistency", "--particles", "10", "-v", first=0.34)
    assert "10 solutions in 3 batches: the vote was not settled" in told.stdout
    assert "batch 3: ESS 10.0 of 10, 10 of 10 finished" in told.stderr


def test_pandora_takes_the_best(solve: Solve) -> None:
    """The reward is s(2 + 3) = 0.9933: (1 - 0.9933)^2 / (2 (n + 1)) is 4.5e-6 after 4 samples and 2.5e-6 after 8."""
    for cost, drawn in ((5e-6, 4), (4e-6, 8)):
        found = report(solve("--until", f"pandora:{cost}", "--method", "best-of-n", "--json"))
        assert (found["num_drawn"], found["answer"], found["stopped"]) == (drawn, "1", True)


def test_tokens_end_the_run(solve: Solve) -> None:
    """Two tokens a solution: after the second filter of 4 they are spent."""
    found = report(solve("--until", "beta:0.999", "--max-tokens-total", "13", "--particles", "40", "--json", first=0.34))
    assert (found["num_drawn"], found["cost"]["tokens_sampled"], found["stopped"]) == (8, 16, False)


def test_an_interrupt_shows_what_there_is(solve: Solve) -> None:
    lm = table(0.34)
    draw, calls = lm.sample_step, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    lm.sample_step = interrupted  # type: ignore[method-assign]
    result = solve("--until", "beta:0.999", "--method", "self-consistency", "--json", lm=lm)
    assert result.exit_code == 130, result.output
    found = json.loads(result.stdout)
    assert found["partial"] and found["particles"] == 8 and found["complete"] is False and len(found["ess"]) == 2
    lm.sample_step = interrupted  # type: ignore[method-assign]
    calls.clear()
    shown = solve("--until", "beta:0.999", "--method", "self-consistency", lm=lm)
    assert "Partial vote over answers: interrupted after 2 batches" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--until", "beta:1.5"], "--until: confidence must be a number between 0.5 and 1, got 1.5"),
        (["--until", "agree:0.9"], "--until agree:0.9 compares temperatures: take method multi-temperature, or another rule"),
        (["--until", "bta:0.9"], "unknown until 'bta'; did you mean 'beta'?"),
        (["--until", "beta"], "--until must be a rule with its number, such as beta:0.95, got 'beta'"),
        (["--until", "same:2.5"], "--until must be a rule with its number, such as same:3, got 'same:2.5'"),
        (["--batch", "3"], "--batch is for batches, and there is only one without a rule that ends them"),
        (["--doubling"], "--doubling is for batches"),
        (["--until", "beta:0.95", "--islands", "3"], "--islands must be 1 where until is given, got 3"),
        (["--until", "beta:0.95", "--batch", "32"], "--batch must be at most the particles (16), got 32"),
        (["--until", "beta:0.9", "--method", "best-of-n"], "counts votes, and best-of-N has none"),
        (["--until", "pandora:0.1"], "the particles of a filter are not independent; take BestOfN or Importance"),
        (
            ["--until", "beta:0.9", "--method", "dvts"],
            "--until has no effect with --method dvts; it goes with smc, power-smc, importance",
        ),
        (["--until", "beta:0.9", "--preset", "as_paper"], "--until needs weights of its own for each"),
        (["--method", "smc:until=beta:0.9", "--until", "beta:0.8"], "both set until; give it once"),
        (["--method", "smc:until=beta:0.9:batch=3:x"], "expected option=value after the colon, got 'x'"),
    ],
)
def test_mistakes_are_one_line(solve: Solve, arguments: list[str], says: str) -> None:
    result = solve(*arguments)
    assert result.exit_code == 2 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.output


def test_names() -> None:
    """Rules have colons of their own; under a budget ``until`` makes a method of its own of a vote."""
    assert parse_method("smc:until=beta:0.95:batch=2").options == {"until": "beta:0.95", "batch": 2}
    assert parse_until("same:3") == ("SameAnswers", 3)
    stopping, shared = get_method("self-consistency:until=share:0.75:doubling=true"), get_method("self-consistency")
    assert not stopping.shared and stopping.in_batches and shared.shared and not shared.in_batches
    assert stopping.sized(12)["particles"] == 12 and get_method("best-of-n:until=pandora:0.1:batch=6").least == 6
    with pytest.raises(ValueError, match="method 'self-consistency' takes no options here, or only together with until"):
        get_method("self-consistency:batch=2")
    with pytest.raises(ValueError, match="particles follows from the budget here"):
        get_method("self-consistency:until=same:3:particles=2")
