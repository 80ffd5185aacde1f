"""A reward trained on a run: from ``evaluate --keep-texts`` to ``solve --reward hidden:FILE``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ppl_llm import HiddenStateReward, TransformersLM
from ppl_llm.cli import app
from ppl_llm.demo import held_out
from ppl_llm.evaluation import Models, Results, evaluate, fit_reward
from ppl_llm.evaluation.metrics import auroc
from ppl_llm.evaluation.trained_reward import Examples, Solution, check_model, measured, solutions, written
from ppl_llm.lm import StepOptions
from ppl_llm.reward.hidden_state_reward import saved_head
from ppl_llm.tasks import Problem
from tests.helpers.tiny_models import language_model, write_lm

LIMITS = {"max_steps": 8, "max_tokens": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the demo language model, with texts."""
    out = tmp_path_factory.mktemp("runs") / "texts"
    problems = [Problem(str(i), each.text, each.answer) for i, each in enumerate(held_out(18))]
    models = Models(lm="demo", reward="none", keep_texts=True, **LIMITS)  # type: ignore[arg-type]
    evaluate(problems, models, out, methods=["self-consistency"], budgets=[6], group_size=18)
    return out


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return TransformersLM.from_pretrained("demo")


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def changed(run: Path, tmp_path: Path, change: Any) -> Path:
    """A copy of a run with other records."""
    for file in run.glob("*.json*"):
        lines = file.read_text()
        if file.name == "records.jsonl":
            lines = "".join(json.dumps(change(json.loads(line))) + "\n" for line in lines.splitlines())
        (tmp_path / file.name).write_text(lines)
    return tmp_path


def test_the_texts_are_written_as_they_were_sampled(lm: TransformersLM, run: Path) -> None:
    """Steps and ends of texts that the language model sampled itself."""
    context = lm.start([each.text for each in held_out(2)]).expand((3, 2))
    torch.manual_seed(0)
    for _ in range(8):
        tokens = lm.sample_step(context, context.batch_shape, StepOptions(max_tokens=40)).tokens
        context = context.extend(tokens)
    assert bool(context.done.all())
    group = [
        [Solution(str(p), held_out(2)[p].text, text, True, True) for text in column]
        for p, column in enumerate(zip(*context.text, strict=True))
    ]
    again = written(lm, group)
    assert again.num_steps == int((context.ends > context.step_starts).any(0).any(0).sum())
    assert torch.equal(again.tokens, context.tokens[..., : again.tokens.shape[-1]])
    assert torch.equal(again.ends, context.ends[..., : again.num_steps]) and bool(again.done.all())


def test_solutions_that_are_missing_or_too_long_have_no_steps() -> None:
    lm = language_model(max_length=40)
    group = [[Solution("0", "x", "1\n\n2", False, True)], [Solution("1", "y", text, False, True) for text in ("3", "4" * 100)]]
    context = written(lm, group, max_tokens=4)
    assert (context.lengths - context.prompt_lengths).tolist() == [[3, 1], [0, 0]]
    assert context.ends.tolist()[0][0] == [int(context.prompt_lengths[0, 0]) + k for k in (2, 3)]


def test_it_trains_on_problems_and_reports_on_others(lm: TransformersLM, run: Path) -> None:
    results = Results.read(run)
    known = solutions(results)
    assert len(known) == 18 * 6 and {s.question for s in known} == {each.text for each in held_out(18)}
    found = fit_reward(results, lm)
    assert (found.trained_problems, found.held_out_problems, found.trained, found.held_out) == (12, 6, 72, 36)
    again = fit_reward(results, lm)
    assert again.figures == found.figures
    assert fit_reward(results, lm, seed=1).figures != found.figures
    for interval in found.figures:
        assert interval.low <= interval.value <= interval.high or torch.isnan(torch.tensor(interval.value))


def test_figures_are_those_of_plain_python() -> None:
    """Two problems of two solutions each, of one or two steps."""
    states, labels = torch.zeros(6, 1), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    last = torch.tensor([False, True, True, False, True, True])
    odds = torch.tensor([0.0, 2.0, -1.0, 0.5, -0.5, 0.0]).double().numpy()
    figures = measured(odds, Examples(states, labels, ["a"] * 3 + ["b"] * 3, last))
    stated = 1 / (1 + torch.exp(-torch.tensor(odds)))
    assert figures.answer_auroc.value == 3 / 4  # 2 > -1, 2 > 0, -0.5 > -1, -0.5 < 0
    assert figures.within_auroc.value == 1 / 2  # right in the first problem, wrong in the second
    assert figures.step_auroc.value == auroc(odds, labels.numpy() > 0.5) == (4 + 2.5) / 8
    assert figures.brier.value == pytest.approx(float((stated - labels)[last].square().mean()))


def test_from_the_command_line(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    made = command("fit-reward", run, "--lm", "demo", "--out", file)
    assert made.exit_code == 0, made.stderr
    assert "trained on 72 solutions to 12 problems. On 36 solutions to 6 other problems" in made.stdout
    assert f"use it with --reward hidden:{file} --preset twisted" in made.stdout
    told = saved_head(file)
    about = json.loads(told["about"])
    assert told["lm"] == "demo" and about["run"] == "texts" and len(about["answer_auroc"]) == 3
    question = held_out(1)[0].text
    solved = command(
        "solve", question, "--reward", f"hidden:{file}", "--preset", "twisted", "--particles", 4, "--max-steps", 8, "--max-tokens", 40
    )
    assert solved.exit_code == 0, solved.stderr
    shown = command(
        *("evaluate", "demo", "--limit", 2, "--reward", f"hidden:{file}", "--preset", "twisted", "--methods", "smc,best-of-n"),
        *("--budgets", 2, "--max-steps", 8, "--max-tokens", 40, "--out", tmp_path / "run"),
    )
    assert shown.exit_code == 0, shown.stderr
    assert json.loads((tmp_path / "run/configuration.json").read_text())["reward"] == f"hidden:{file}"
    other = command("solve", "What is 2 + 2?", "--lm", write_lm(tmp_path / "lm"), "--reward", f"hidden:{file}")
    assert other.exit_code == 2 and "was trained on hidden states of the language model 'demo'" in other.stderr
    assert other.stderr.count("\n") == 1


def one_line(result: Any) -> str:
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    return str(result.stderr)


def test_runs_that_cannot_be_trained_on(run: Path, tmp_path: Path) -> None:
    def fit(folder: Path, model: Any = "demo", out: Any = tmp_path / "x") -> str:
        return one_line(command("fit-reward", folder, "--lm", model, "--out", out))

    folders = [tmp_path / str(i) for i in range(5)]
    for folder in folders:
        folder.mkdir()

    def without_texts(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "candidates": [{k: v for k, v in c.items() if k != "text"} for c in record.get("candidates", ())]}

    assert "hold no texts; run evaluate with --keep-texts" in fit(changed(run, folders[0], without_texts))
    assert "no independent samples" in fit(changed(run, folders[1], lambda record: {**record, "method": "smc"}))

    def all_wrong(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "gold": "none"}

    assert "all 108 solutions of this run are wrong" in fit(changed(run, folders[2], all_wrong))
    model = write_lm(tmp_path / "lm")
    assert f"the run was made with the language model 'demo', and --lm is {str(model)!r}, which is another one" in fit(run, model)
    assert "is on a server, which gives no hidden states" in fit(run, "http://localhost:8000")
    assert "there are no records" in fit(folders[3])
    assert "there is no directory" in fit(run, out=tmp_path / "no" / "x")
    assert "unknown pooling 'max'" in one_line(command("fit-reward", run, "--lm", "demo", "--out", tmp_path / "x", "--pooling", "max"))
    assert not (tmp_path / "x").exists()


def test_the_model_of_a_run_may_have_moved(run: Path, tmp_path: Path) -> None:
    """The same files under another name are the same model."""
    results = Results.read(run)
    check_model(results, "demo")
    model = write_lm(tmp_path / "lm")
    results.configuration["lm"] = str(model)
    with pytest.raises(ValueError, match="which is another one"):
        check_model(results, "demo")
    check_model(results, str(write_lm(tmp_path / "copy")))
    results.configuration["lm"] = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="which is another one"):
        check_model(results, "demo")


def test_rewards_by_name_that_are_refused(tmp_path: Path) -> None:
    question = held_out(1)[0].text
    assert "reward 'hidden' lacks a name" in one_line(command("solve", question, "--reward", "hidden"))
    assert "no file 'nowhere' with a head" in one_line(command("solve", question, "--reward", "hidden:nowhere"))
    text = tmp_path / "text"
    text.write_text("x")
    assert "not in safetensors format" in one_line(command("evaluate", "demo", "--out", tmp_path / "o", "--reward", f"hidden:{text}"))


def test_states_that_are_nan(lm: TransformersLM, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = HiddenStateReward.states
    monkeypatch.setattr(HiddenStateReward, "states", lambda self, context, start=0: inner(self, context, start) * torch.nan)
    with pytest.raises(ValueError, match="the hidden states hold nan or infinite values"):
        fit_reward(Results.read(run), lm)
