"""What users of published models rely on, through the commands: prompts, notes before a run, families, and the live line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as bars
from typer.testing import CliRunner

from ppl_llm import TabularLM, TransformersLM
from ppl_llm.cli import app, loading
from ppl_llm.context import Context
from ppl_llm.demo import LM_DIR, example
from ppl_llm.evaluation.pool import Pool
from tests.helpers.tiny_models import write_lm, write_prm

TEXT = example(1).text
SYSTEM = "Put the answer within a box."
BRIEF = ["--max-steps", "2", "--max-tokens", "4"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def evaluated(tmp_path: Path, *arguments: str, methods: str = "importance") -> Any:
    """One problem at a budget of two, on the demo's models unless others are given."""
    few = ["--limit", "1", "--budgets", "2", "--methods", methods, *BRIEF, "--out", str(tmp_path / "run")]
    return run("evaluate", "demo", *few, *arguments)


def one_line(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return str(result.stderr)


# notes before a run -----------------------------------------------------------------------------------------------------------------------

LONGER = "solutions may have 1024 tokens, and the reward model reads 300 at most"


@pytest.fixture
def prm(tmp_path: Path) -> str:
    return str(write_prm(tmp_path / "prm", max_position_embeddings=300))


@pytest.fixture
def lm(tmp_path: Path) -> str:
    return str(write_lm(tmp_path / "lm", max_position_embeddings=512))


def test_solve_says_before_the_run_that_solutions_may_be_too_long(prm: str, lm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep never begins here, and the line is there."""
    monkeypatch.setattr("ppl_llm.cli.run.sweep", lambda *_, **__: (_ for _ in ()).throw(ValueError("the run begins")))
    arguments = ["solve", TEXT, "--lm", lm, "--prm", prm]
    said = run(*arguments).stderr.splitlines()
    assert len(said) == 2 and LONGER in said[0] and "--max-tokens-completion" in said[0] and said[1] == "error: the run begins"
    assert LONGER not in run(*arguments, "--max-tokens-completion", "200").stderr
    events = [json.loads(line) for line in run(*arguments, "--log-json").stderr.splitlines()]
    assert [event["event"] for event in events] == ["note", "error"] and LONGER in events[0]["message"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_evaluate_says_so_before_the_first_problem(
    prm: str, lm: str, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(*_: Any) -> Any:
        raise ValueError("the run begins")

    monkeypatch.setattr(Pool, "run", begins)
    arguments = ["--lm", lm, "--prm", prm, "--workers", workers]
    said = evaluated(tmp_path, *arguments).stderr.splitlines()
    assert len(said) == 2 and LONGER in said[0] and "--max-tokens-completion" in said[0] and said[1] == "error: the run begins"
    assert LONGER not in evaluated(tmp_path / "short", *arguments, "--max-tokens-completion", "200").stderr
    votes = evaluated(tmp_path / "vote", *arguments, methods="self-consistency")
    assert LONGER not in votes.stderr, "a reward that no method asks is not spoken of"


def test_a_finished_evaluation_says_nothing(prm: str, lm: str, tmp_path: Path) -> None:
    arguments = ["--lm", lm, "--prm", prm]
    first, again = evaluated(tmp_path, *arguments), evaluated(tmp_path, *arguments)
    assert (first.exit_code, again.exit_code) == (0, 0), first.output
    assert LONGER in first.stderr and LONGER not in again.stderr


# prompts ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What language models are given, with special tokens."""
    seen: list[str] = []
    start = TransformersLM.start

    def noted(self: TransformersLM, problem: Any) -> Context:
        context = start(self, problem)
        rows = context.tokens.reshape(-1, context.tokens.shape[-1])
        seen.extend(self.tokenizer.decode([i for i in row if i >= 0]) for row in rows.tolist())
        return context

    monkeypatch.setattr(TransformersLM, "start", noted)
    return seen


def test_the_system_prompt_reaches_the_model(lm: str, prompts: list[str], tmp_path: Path) -> None:
    arguments = ["--lm", lm, "--system-prompt", SYSTEM]
    solved = run("solve", TEXT, *arguments, "--particles", "2", *BRIEF, "--json")
    assert solved.exit_code == 0, solved.output
    assert prompts and all(prompt.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{TEXT}") for prompt in prompts)
    prompts.clear()
    result = evaluated(tmp_path, *arguments, methods="self-consistency")
    assert result.exit_code == 0, result.output
    assert prompts and all(prompt.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n") for prompt in prompts)
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["system_prompt"] == SYSTEM
    prompts.clear()
    assert run("solve", TEXT, "--lm", lm, "--particles", "2", *BRIEF).exit_code == 0
    assert prompts and not any("system" in prompt for prompt in prompts)


def test_a_model_without_a_chat_template_reads_the_system_prompt_first(prompts: list[str]) -> None:
    assert run("solve", TEXT, "--lm", str(LM_DIR), "--system-prompt", TEXT, "--particles", "2", *BRIEF).exit_code == 0
    assert prompts and all(prompt.count(TEXT) == 2 for prompt in prompts), prompts


# rewards by name --------------------------------------------------------------------------------------------------------------------------


def test_the_family_decides_how_steps_are_written(lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model with nothing that tells its family is a reward model of the one that is named, and refused without a name."""
    from ppl_llm import TransformersPRM
    from tests.helpers.tiny_prms import WRITE

    families: list[str] = []
    score = TransformersPRM.step_log_odds
    monkeypatch.setattr(TransformersPRM, "step_log_odds", lambda self, context: families.append(self.family) or score(self, context))
    directory = str(WRITE["rlhflow"][1](tmp_path / "mine"))
    arguments = ["--lm", lm, "--prm", directory, "--max-tokens-completion", "100"]
    assert "--prm-family" in one_line(evaluated(tmp_path / "unknown", *arguments))
    assert "--prm-family" in one_line(run("solve", TEXT, *arguments))
    assert families == []
    result = evaluated(tmp_path, *arguments, "--prm-family", "rlhflow")
    assert result.exit_code == 0, result.output
    assert set(families) == {"rlhflow"}
    solved = run("solve", TEXT, *arguments, "--prm-family", "rlhflow", "--particles", "2", *BRIEF, "--json")
    assert solved.exit_code == 0 and json.loads(solved.stdout)["settings"]["prm_family"] == "rlhflow"


@pytest.mark.parametrize("command", ["solve", "evaluate", "evaluate --workers 2", "serve"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prm-family", "qwne"], "unknown family 'qwne'; did you mean 'qwen'?"),
        (["--reward", "none", "--prm-family", "qwen"], "--prm-family is for a process reward model"),
        (["--prm", ""], "--prm is empty: give demo, demo-weak, a directory, a hub name or an address"),
        (["--prm", " "], "--prm is empty"),
        (["--reward", "prm:"], "lacks a name"),
    ],
)
def test_rewards_that_make_no_sense_are_one_line_before_a_model_is_loaded(
    command: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (LOADED := ("ppl_llm.cli.loading.load_lm", "ppl_llm.cli.loading.load_prm", "ppl_llm.evaluation.source.Models.load")):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail(f"one of {LOADED} was called"))
    name, *options = command.split()
    given = {"solve": [TEXT], "evaluate": ["demo", "--out", str(tmp_path / "run")], "serve": []}[name]
    assert message in one_line(run(name, *given, *options, *arguments))
    assert not (tmp_path / "run").exists()


# answers ----------------------------------------------------------------------------------------------------------------------------------


def test_answers_that_are_equal_as_mathematics_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    symbols = ["a", "\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{3}", "$"]
    logits = torch.full((5, 5), -torch.inf)
    logits[0, 1:4], logits[1:4, 4] = 0.0, 0.0
    monkeypatch.setattr(loading, "load_lm", lambda *_, **__: TabularLM(logits, symbols, eos="$"))

    def answers(*arguments: str) -> dict[str, float]:
        result = run("solve", "a", "--lm", "table", "--method", "self-consistency", "--particles", "64", "--json", *arguments)
        assert result.exit_code == 0, result.output
        return {each["answer"]: each["probability"] for each in json.loads(result.stdout)["answers"]}

    apart, together = answers(), answers("--equivalence", "math")
    assert apart.keys() == {"1/2", "0.5", "3"} and together.keys() in ({"1/2", "3"}, {"0.5", "3"})
    assert together["3"] == pytest.approx(apart["3"])
    assert max(together.values()) == pytest.approx(apart["1/2"] + apart["0.5"])


def test_a_command_leaves_progress_bars_as_they_were() -> None:
    bars.enable_progress_bar()
    assert run("solve", TEXT, "--particles", "2", *BRIEF).exit_code == 0
    assert bars.is_progress_bar_enabled()


# the terminal -----------------------------------------------------------------------------------------------------------------------------

AT_A_TERMINAL = """
    import time
    import ppl_llm.cli.progress as progress
    from ppl_llm.cli import main
    from ppl_llm.lm.decoding import step_sampler

    tell = step_sampler.tell_alive

    def slowly(number):
        time.sleep(0.05)
        tell(number)

    step_sampler.tell_alive = slowly  # so that a step takes longer than a refresh
    progress._REFRESH_SECONDS = 0.1
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_the_live_line_moves_within_a_step() -> None:
    """In a real terminal: it shows sequences and tokens per second before the first step has ended, and is gone in the end."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(AT_A_TERMINAL), "solve", TEXT, "--particles", "4"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert child.wait(timeout=60) == 0, written.decode()
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines = re.findall(r"(\d+) sequences alive, [\d,]+ tokens/s, \d+ s", text)
    assert len(lines) >= 5 and {int(alive) for alive in lines} <= {0, 1, 2, 3, 4} and int(lines[0]) == 4
    first_row = re.search(r"^\s*1 +[\d.]+ .*\d of 4 +[\d,]+", text, re.MULTILINE)
    assert first_row is not None
    early = re.findall(r"4 sequences alive, [\d,]+ tokens/s", text[: first_row.start()])
    assert len(early) >= 2, "the line moved before the first step was complete"
    end = text[text.index("Posterior over answers") :]
    assert "sequences alive" not in end and "Best solution" in end
