"""``solve`` with each kind of reward, and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app, loading
from ppl_llm.demo import LM_DIR, example
from ppl_llm.lm.decoding.watching import tell_alive, watching

TEXT = example(1).text
FEW = ["--particles", "4"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["solve", TEXT, *arguments])


def solved(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_another_language_model_is_never_judged_by_the_demo_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's directory under another name: a power target, said in a line, and no reward model is loaded."""
    monkeypatch.setattr(loading, "load_prm", lambda *_, **__: pytest.fail("a reward model was loaded"))
    result = run("--lm", str(LM_DIR), *FEW)
    assert result.exit_code == 0 and "no reward model was given: power-smc prefers what the language" in result.stderr
    assert "Posterior over answers" in result.stdout
    voted = run("--lm", str(LM_DIR), "--method", "self-consistency", *FEW)
    assert "no reward model was given: self-consistency takes a majority vote" in voted.stderr and "Vote over answers" in voted.stdout
    report = solved("--lm", str(LM_DIR), *FEW)
    assert (report["settings"]["method"], report["settings"]["reward"], report["best"]["score"]) == ("power-smc", "none", None)
    refused = run("--lm", str(LM_DIR), "--method", "smc")
    assert refused.exit_code == 2 and "--method smc needs a reward" in refused.stderr and "--reward judge" in refused.stderr
    assert solved("--method", "self-consistency", *FEW)["cost"].get("prm_calls", 0) == 0  # not even the demo's


def test_the_demo_reward_model_by_name() -> None:
    assert solved("--lm", str(LM_DIR), "--prm", "demo", *FEW)["settings"]["reward"] == "prm:demo"


@pytest.mark.parametrize("reward", ["confidence", "self-certainty"])
def test_rewards_that_need_no_model(reward: str) -> None:
    report = solved("--reward", reward, *FEW)
    assert report["settings"]["reward"] == reward and all(0 < score < 1 for score in report["best"]["step_scores"])


def test_a_verifier(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"def right(problem, text):\n    return 'boxed{{{example(1).answer}}}' in text\ndef never(problem, text):\n    return False\n"
    )
    report = solved("--reward", f"verifier:{file}:right", "--particles", "16")
    assert report["answers"] == [{"answer": example(1).answer, "probability": pytest.approx(1.0)}]
    none = run("--reward", f"verifier:{file}:never", *FEW, "--json")
    assert none.exit_code == 1, none.output  # what was written is shown all the same
    shown = json.loads(none.stdout)
    assert "have weight zero" in shown["failure"] and shown["best"]["steps"]


LONG = "def long(problem, text):\n    return min(0.99, (len(text) + 1) / 1000)\n"


@pytest.mark.parametrize("method", ["best-of-n", "smc", "beam-search"])
def test_a_verifier_that_likes_long_texts_chooses_a_finished_solution(method: str, tmp_path: Path) -> None:
    """Bounds that cut some of the solutions, the longest ones; every text is an answer here."""
    file = tmp_path / "mine.py"
    file.write_text(LONG)
    shared = ["--reward", f"verifier:{file}:long", "--method", method, "--temperature", "1.5"]
    shared += [] if method == "beam-search" else ["--particles", "16"]
    several = 0
    for bound in (36, 37):
        result = run(*shared, "--max-tokens-completion", str(bound), "--answer-fallback", "text", "--json")
        report = json.loads(result.stdout)
        if not report["finished"]:  # of those that a beam search has drawn
            continue
        assert report["finished"] + report["cut"] == report["particles"]
        several += report["cut"] > 0
        assert result.exit_code == 0 and report["probability_without_answer"] == pytest.approx(0.0), result.output
        assert report["best"]["weight"] > 0.0 and "boxed" in "".join(report["best"]["steps"])
    assert several or method != "best-of-n"


def test_a_run_whose_solutions_are_all_cut_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LONG)
    arguments = ["--reward", f"verifier:{file}:long", *FEW, "--max-tokens-completion"]
    remedy = "Solutions that --max-tokens-completion ({}) or --max-steps (40) cuts have none under this reward: give them more room."
    nothing = run(*arguments, "6")
    assert nothing.exit_code == 2 and remedy.format(6) in nothing.stderr and nothing.stderr.count("\n") == 1
    some = run(*arguments, "30", "--method", "best-of-n", "--json")
    report = json.loads(some.stdout)
    assert some.exit_code == 1 and remedy.format(30) in report["failure"] and report["finished"] == 0
    judged = run(*arguments, "6", "--every", "word")
    assert judged.exit_code == 0  # as it stands


def test_a_judge_that_cannot_say_yes_names_the_remedy() -> None:
    result = run("--reward", "judge", *FEW)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert (
        "'Yes', a word of the judge, is 3 tokens" in result.stderr and "(judge:DIR)" in result.stderr and "--yes and --no" in result.stderr
    )


def test_a_chain_of_single_states_shows_no_sizes_of_one() -> None:
    assert "ESS per iteration" not in run("--method", "suffix-mh", "--iterations", "2").stdout
    assert "ESS per step" in run(*FEW).stdout


def test_steps_of_markdown() -> None:
    assert solved("--stop", "markdown", *FEW)["settings"]["stop"] == "markdown"


def test_limits_and_notes(tmp_path: Path) -> None:
    report = solved("--max-tokens-completion", "6", "--reward", "none", *FEW)
    assert (report["finished"], report["cut"], report["without_answer"], report["cost"]["tokens_sampled"]) == (0, 4, 4, 24)
    table = run("--max-tokens-completion", "6", "--reward", "none", *FEW)
    assert "4 of 4 solutions have no answer after up to 6 of 6 tokens" in table.stderr
    assert "0 of 4 finished (4 cut for their length)" in table.stdout
    assert "4 of 4 solutions have no answer, 1.000 of the probability: ask for" in table.stdout
    assert report["probability_without_answer"] == 1.0
    guessed = solved("--max-tokens-completion", "6", "--reward", "none", *FEW, "--answer-fallback", "last-number")
    assert guessed["without_answer"] < 4
    for arguments, message in [
        (["--max-tokens-completion", "0"], "--max-tokens-completion must be None or an integer of at least 1"),
        (["--top-p", "0"], "--top-p must lie in (0, 1]"),
        (["--finish", "("], "--finish must be a regular expression"),
        (["--equivalence", "near"], "unknown equivalence 'near'"),
        (["--chat-template", str(tmp_path / "none")], "No such file"),
        (["--lm", ""], "the name of the language model is empty"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_options_of_sampling_and_prompts_reach_the_models(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[-1]['content'] }}\n")
    arguments = ["--top-k", "1", "--stop", "=", "--stop", "\\n\\n", "--chat-template", str(template), "--finish", "never"]
    report = solved(*FEW, *arguments)
    assert report["settings"]["stop"] == ["=", "\n\n"] and report["settings"]["top_k"] == 1
    assert len(report["answers"]) == 1 and report["best"]["steps"][0].endswith("=")  # greedy: all solutions are the same


def test_the_tokens_of_a_step_can_be_watched() -> None:
    seen: list[int] = []
    with watching(seen.append):
        tell_alive(3)
    tell_alive(4)
    assert seen == [3]
