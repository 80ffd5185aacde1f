"""Mistakes on the command line give one line that names the value and the remedy; shells complete values; events are JSON."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app, completion
from ppl_llm.cli.one_line_errors import described
from ppl_llm.demo import example
from ppl_llm.inference.resampling import RESAMPLERS
from ppl_llm.methods import BUDGETED
from ppl_llm.methods.options import RESAMPLER_NAMES
from ppl_llm.programs.presets import PRESETS

PROBLEM = example(1).text

MISTAKES = [
    (["sovle", PROBLEM], "sovle", "solve"),
    (["solve", "--metod", "smc", PROBLEM], "--metod", "--method"),
    (["solve", "--method", "smk", PROBLEM], "smk", "smc"),
    (["solve", "--particles", "many", PROBLEM], "many", "--particles"),
    (["solve", "--particles=many", PROBLEM], "many", "--particles"),
    (["solve", "--particles", "0", PROBLEM], "0", "at least 1"),
    (["solve", "--preset", "exat", PROBLEM], "exat", "exact"),
    (["solve", "--resampler", "systemtic", PROBLEM], "systemtic", "systematic"),
    (["solve", "--beam-width", "3", PROBLEM], "--beam-width", "beam-search"),
    (["solve", "--ess-threshold", "2", PROBLEM], "2", "--ess-threshold"),
    (["solve", "--prm", "no/such-model", PROBLEM], "no/such-model", "directory"),
    (["solve", "--device", "cuda:99", PROBLEM], "cuda:99", "cpu"),
    (["solve", "two plus two?"], "demo", "--lm"),
    (["solve", "--lm", "dmeo", PROBLEM], "dmeo", "did you mean 'demo'?"),
    (["solve", "--json-schema", "none.json", PROBLEM], "none.json", "--json-schema"),
    (["solve", "--chat-template", "none.jinja", PROBLEM], "none.jinja", "--chat-template"),
    (["solve", "--calibration", "none.json", PROBLEM], "none.json", "ppl-llm calibrate"),
    (["solve", "--reward", "none", "--method", "smc", PROBLEM], "there is none", "--reward"),
    (["solve", "--method", "smc:island=4", PROBLEM], "island", "islands"),
    (["solve", "--method", "smc:islands=0", PROBLEM], "got 0", "at least 1"),
    (["solve", "--method", "smc:islands=2", "--islands", "3", PROBLEM], "--islands", "give it once"),
    (["solve", "--method", "smc:preset=exact", "--preset", "twisted", PROBLEM], "preset", "give it once"),
    (["solve", "--method", "particle-gibbs:preset=as_paper", PROBLEM], "as_paper", "exact"),
    (["solve", "--method", "weighted-best-of-n", PROBLEM], "weighted-best-of-n", "importance"),
    (["solve", "--method", "waste-free-smc", "--particles", "10", PROBLEM], "got 10 and 4", "--particles 8"),
    (["evaluate", "demo", "--methods", "smc:particles=4", "--out", "x"], "particles", "budget"),
    (["evaluate", "demo", "--methods", "tempered-smc:betas=adaptive", "--out", "x"], "betas", "0.25,1"),
    (["solve", "--abstain", "1.5", PROBLEM], "1.5", "[0, 1]"),
    (["solve", "--method", "best-of-n", "--abstain", "0.3", PROBLEM], "best-of-n", "self-consistency"),
    (["evaluate", "demo", "--aggregation", "window:0", "--out", "x"], "window:0", "window:3"),
    (["solve", "--method", "smc:aggregation=windows:2:preset=twisted", PROBLEM], "windows:2", "window:3"),
    (["solve", ""], "empty", "standard input"),
    (["solve"], "problem", "--help"),
    (["evaluate", "demo"], "--out", "--help"),
    (["evaluate", "demo", "--budgets", "1;4", "--out", "x"], "1;4", "1,2,4"),
    (["evaluate", "missing.jsonl", "--out", "x"], "missing.jsonl", "demo"),
    (["demo", "--levels", "9"], "9", "1, 2, 3"),
    (["serve", "--method", "smk"], "smk", "smc"),
    (["serve", "--most-particles", "0"], "0", "--most-particles"),
    (["serve", "--queue", "-1"], "-1", "--queue"),
    (["serve", "--particles", "300"], "300", "at most 256"),
    (["serve", "--keys", "nowhere"], "nowhere", "--keys"),
    (["serve", "--host", "256.0.0.1"], "256.0.0.1", "--host"),
    (["serve", "--lm", "somewhere", "--method", "smc"], "smc", "--prm"),
    (["report", "nowhere"], "nowhere", "ppl-llm evaluate"),
]


@pytest.mark.parametrize(("arguments", "value", "remedy"), MISTAKES, ids=lambda each: " ".join(each) if isinstance(each, list) else "")
def test_a_mistake_gives_one_line_with_value_and_remedy(arguments, value, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert value in lines[0] and remedy in lines[0], lines[0]
    assert result.stdout == "" and not list(tmp_path.iterdir())


def test_a_message_without_the_value_is_told_from_one_with_it():
    """The value comes from the arguments: one that follows another option must not be taken."""

    class Error:
        ctx = None
        param = type("Param", (), {"opts": ["--particles"]})

        def format_message(self):
            return "Invalid value for '--particles': not a number."

    assert described(Error(), ["solve", "--seed", "3", "--particles", "many"]).startswith(
        "invalid value for '--particles': not a number, got 'many'; ppl-llm --help"
    )
    assert "got" not in described(Error(), ["solve", "--seed", "3"])


def test_no_arguments_show_the_help():
    result = CliRunner().invoke(app, [])
    assert "Usage" in result.output and "error:" not in result.output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ppl-llm solve --met", ["--method"]),
        ("ppl-llm solve --method te", ["tempered-smc"]),
        ("ppl-llm solve --preset i", ["its_hub"]),
        ("ppl-llm evaluate demo --methods smc,be", ["smc,beam-search", "smc,best-first", "smc,best-of-n", "smc,best-of-majority"]),
        ("ppl-llm solve --prm demo", ["demo", "demo-weak"]),
    ],
)
def test_the_shell_completes_options_and_their_values(words, offered, monkeypatch, capsys):
    monkeypatch.setenv("_PPL_LLM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        app(prog_name="ppl-llm")
    assert capsys.readouterr().out.split() == offered


def test_what_is_completed_is_what_there_is():
    assert set(completion.PRESETS) == set(PRESETS)
    assert set(RESAMPLER_NAMES) == set(RESAMPLERS)
    offered = completion.several(BUDGETED)
    assert set(offered("")) == set(BUDGETED)
    assert "smc,smc" not in offered("smc,")


def test_directories_are_completed(tmp_path, monkeypatch):
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    (tmp_path / "models" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    complete = completion.model(completion.LMS)
    assert complete("mo") == ["models"]
    assert complete("models/") == ["models/qwen"]
    assert complete("nowhere/x") == []


def test_events_are_one_json_object_per_line():
    result = CliRunner().invoke(app, ["solve", PROBLEM, "--particles", "4", "--log-json", "--json"])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stderr.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, len(steps) + 1)) and steps
    assert all(1 <= event["ess"] <= 4 for event in steps)
    assert "answers" in json.loads(result.stdout)


def test_errors_are_events_too():
    result = CliRunner().invoke(app, ["solve", PROBLEM, "--particles", "0", "--log-json"])
    (event,) = [json.loads(line) for line in result.stderr.splitlines()]
    assert event["event"] == "error" and event["exit_code"] == result.exit_code == 2
    assert re.search("at least 1, got 0", event["message"])


def test_the_help_of_reward_names_every_kind():
    from ppl_llm.cli.model_options import REWARD
    from ppl_llm.reward.choice import REWARD_KINDS

    assert all(text.startswith(kind) and text in REWARD for kind, text in REWARD_KINDS.items())
