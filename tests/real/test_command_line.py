"""The command line on published models: check, solve with each reward, and an evaluation that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ppl_llm import TransformersPRM
from ppl_llm.cli import app
from ppl_llm.context import PAD
from ppl_llm.evaluation.records import RECORDS, Key, read_records
from tests.helpers.tiny_prms import RECIPES
from tests.real.published import NAMES, QUESTION, SHORT, loaded, path, real, write_prm

pytestmark = real


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_check_passes(name: str, dtype: str) -> None:
    assert run("check", path(name), "--dtype", dtype)["ok"]


SOLVE = ("solve", SHORT, "--particles", "2", "--max-tokens-completion", "96")


def test_a_language_model_alone_takes_the_power_target() -> None:
    report = run(*SOLVE, "--lm", path("qwen05"))
    assert (report["settings"]["method"], report["settings"]["reward"]) == ("power-smc", "none")
    assert report["finished"] + report["cut"] == 2 and report["log_evidence"] is not None and report["cost"].get("prm_calls", 0) == 0


@pytest.mark.parametrize("reward", ["judge", "confidence", "self-certainty", "verifier"])
def test_each_reward(reward: str, tmp_path: Path) -> None:
    if reward == "verifier":
        file = tmp_path / "mine.py"
        file.write_text("def right(problem, text):\n    return 0.9 if '4' in text else 0.1\n")
        reward = f"verifier:{file}:right"
    report = run(*SOLVE, "--lm", path("qwen05"), "--reward", reward)
    assert report["settings"]["method"] == "smc" and report["answer"] == "4" and report["log_evidence"] is not None
    assert all(score is None or 0 <= score <= 1 for score in report["best"]["step_scores"])


def test_a_gguf_file_solves() -> None:
    report = run("solve", SHORT, "--lm", path("smollm2.gguf"), "--particles", "2", "--max-tokens-completion", "48", "--stop", "markdown")
    assert report["settings"]["stop"] == "markdown" and report["cost"]["tokens_sampled"] > 0


def test_a_verifier_that_likes_long_texts_chooses_a_finished_solution(tmp_path: Path) -> None:
    """Of solutions some of which 48 tokens cut, which are the longest ones."""
    file = tmp_path / "mine.py"
    file.write_text("def long(problem, text):\n    return min(0.99, (len(text) + 1) / 1000)\n")
    arguments = ["--lm", path("smollm2"), "--particles", "8", "--max-tokens-completion", "48", "--reward", f"verifier:{file}:long"]
    report = run("solve", SHORT, *arguments, "--method", "best-of-n", "--answer-fallback", "last-number")
    assert report["finished"] > 0 and report["cut"] > 0 and report["finished"] + report["cut"] == 8
    assert report["answer"] is not None and report["best"]["weight"] == 1.0
    assert report["best"]["score"] < 0.99 and len("".join(report["best"]["steps"])) > 0


@pytest.mark.parametrize("family", ["qwen", "skywork"])
def test_layouts_of_process_reward_models_with_the_published_tokenizer(family: str, tmp_path: Path) -> None:
    """Token ids of the format, scores against the published recipe written out, and a run of solve under the random head."""
    directory = write_prm(family, tmp_path / "prm")
    prm, lm = TransformersPRM.from_pretrained(directory, dtype=torch.float32), loaded("qwen05")
    assert prm.family == family
    if family == "qwen":
        assert prm.tokenizer.convert_tokens_to_ids("<extra_0>") == 151651
    else:
        assert prm.tokenizer("\n", add_special_tokens=False)["input_ids"] == [198]
    steps = ["A day brings 12 * 3 = 36 dollars.", "Five days bring 5 * 36 = 180.", "The answer is \\boxed{180}."]
    context = lm.start(QUESTION)
    for step in steps:
        ids = lm.tokenizer(step + "\n\n", add_special_tokens=False)["input_ids"]
        context = context.extend(torch.tensor([*ids, *[PAD] * (40 - len(ids))]))
    torch.testing.assert_close(prm.step_log_odds(context), torch.tensor(RECIPES[family](directory)(QUESTION, steps)), atol=1e-4, rtol=1e-4)
    report = run(*SOLVE, "--lm", path("qwen05"), "--reward", f"prm:{directory}")
    assert report["settings"]["reward"] == f"prm:{directory}" and report["cost"]["prm_forwards"] > 0


def test_an_evaluation_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Killed after its first records, and run again: the records of one that was not."""
    problems = tmp_path / "problems.jsonl"
    rows = [{"id": str(n), "problem": f"What is {n} + 2? Put the final answer in \\boxed{{}}.", "answer": str(n + 2)} for n in range(4)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "ppl_llm.cli", "evaluate", str(problems), "--lm", path("smollm2"), "--reward", "confidence"]
    command += ["--methods", "importance,smc", "--budgets", "2", "--group-size", "1", "--max-tokens-completion", "32", "--out"]

    def go(folder: Path) -> None:
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, env={**os.environ})
        assert done.returncode == 0, done.stderr

    go(tmp_path / "whole")
    process = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True, stdout=subprocess.DEVNULL)
    records = tmp_path / "killed" / RECORDS
    while not (records.exists() and records.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(read_records(tmp_path / "killed"))) < 8
    go(tmp_path / "killed")

    def comparable(folder: Path) -> dict[Key, dict[str, Any]]:
        return {Key.of(r): {k: v for k, v in r.items() if k not in ("seconds", "cost")} for r in read_records(folder)}

    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


def test_a_reward_on_hidden_states(tmp_path: Path) -> None:
    """From texts of a run to ``solve``."""
    sums = [(2, 2), (1, 3), (3, 4), (5, 2), (1, 1), (2, 6)] + [(738 + i, 964 + 7 * i) for i in range(6)]
    texts = [
        {"problem": f"What is {a} {'+' if a < 9 else '*'} {b}? Answer with the number only.", "answer": str(a + b if a < 9 else a * b)}
        for a, b in sums
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    shared = ["--lm", path("smollm2"), "--max-tokens-completion", "16", "--answer-fallback", "last-number"]
    arguments = [str(tmp_path / "sums.jsonl"), *shared, "--methods", "self-consistency", "--budgets", "3", "--keep-texts"]
    made = CliRunner().invoke(app, ["evaluate", *arguments, "--group-size", "12", "--out", str(tmp_path / "run")])
    assert made.exit_code == 0, made.output
    head = tmp_path / "head.safetensors"
    fitted = CliRunner().invoke(app, ["fit-reward", str(tmp_path / "run"), "--lm", path("smollm2"), "--out", str(head)])
    assert fitted.exit_code == 0, fitted.output
    assert "to 8 problems. On 12 solutions to 4 other problems" in fitted.output
    report = run(
        "solve",
        "What is 2 + 2? Answer with the number only.",
        *shared,
        "--reward",
        f"hidden:{head}",
        "--preset",
        "twisted",
        "--particles",
        "2",
    )
    assert report["settings"]["reward"] == f"hidden:{head}" and report["cost"]["prm_calls"] > 0
    other = CliRunner().invoke(app, ["solve", SHORT, "--lm", path("qwen05"), "--reward", f"hidden:{head}"])
    assert other.exit_code == 2 and "this is another one" in other.output
