"""The command line: results, bad input, interruption. Most tests run on a language model and rewards given by small tables."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from typer.testing import CliRunner

import ppl_llm.cli.loading as loading
from ppl_llm import Context, TabularLM, TabularReward
from ppl_llm.cli import app
from ppl_llm.cli.report import plain
from ppl_llm.demo import example, make_problem
from ppl_llm.methods import METHODS, SOLVING

SYMBOLS = ["a", "b", "go\n\n", "x", "\\boxed{1}", "\\boxed{2}", "$"]


def tabular_lm(ends: bool = True) -> TabularLM:
    """Writes steps of x's, then a boxed 1 or 2; never ends unless ``ends``."""
    logits = torch.full((7, 7), -torch.inf)
    logits[:, 2], logits[:, 3] = 0.5, 0.5
    if ends:
        logits[:, 4] = logits[:, 5] = 0.0
        logits[4:6] = -torch.inf
        logits[4:6, 6] = 0.0
    lm = TabularLM(logits, SYMBOLS, eos="$")
    states = torch.eye(len(SYMBOLS) + 1)  # a table has none, and some methods ask for them: one for each symbol

    def hidden_states(context: Context, positions: torch.Tensor) -> torch.Tensor:
        return states[context.tokens.take_along_dim(positions.clamp(min=0), -1)] * (positions >= 0)[..., None]

    lm.hidden_states = hidden_states
    return lm


class Prm:
    """A tabular reward that prefers the answer 1, and raises at a given call."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.table = TabularReward(torch.tensor([0.0, 0.0, 0.5, -0.2, 1.0, -1.0, 0.0]))
        self.fail_at, self.error, self.calls = fail_at, error, 0

    def step_log_odds(self, context):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error("in the middle")
        return self.table.step_log_odds(context)


@pytest.fixture
def tables(monkeypatch):
    """Puts the tables in place of models; returns a function that chooses others."""

    def choose(lm: object, prm: object) -> None:
        monkeypatch.setattr(loading, "load_lm", lambda *_, **__: lm)
        monkeypatch.setattr(loading, "load_prm", lambda *_, **__: prm)

    choose(tabular_lm(), Prm())
    return choose


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(app, list(arguments), input=stdin)


def solve(*arguments: str, problem: str = "ab", stdin: str | None = None):
    return run("solve", problem, "--lm", "table", "--prm", "table", *arguments, stdin=stdin)


def solved(*arguments: str, **kwargs) -> dict:
    result = solve("--json", *arguments, **kwargs)
    assert result.exit_code == 0, result.output
    assert re.sub(rf"^--method ({'|'.join(WITHOUT_REWARD)}) asks no reward: prm:table is not loaded\n", "", result.stderr) == ""
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def without_times(report: dict) -> dict:
    report["cost"] = {name: value for name, value in report["cost"].items() if "seconds" not in name}
    return report


FAST = {
    "particle-gibbs": ["--iterations", "2", "--particles", "4"],
    "pimh": ["--iterations", "3", "--particles", "4"],
    "prefix-walk": ["--iterations", "2", "--walk-steps", "20"],
    "suffix-mh": ["--iterations", "5", "--warmup", "1"],
    "tempered-smc": ["--particles", "4", "--betas", "0.3,1"],
    "waste-free-smc": ["--particles", "4", "--chain-length", "2", "--betas", "0.3,1"],
    "parallel-tempering": ["--iterations", "4", "--warmup", "1"],
}
"""Numbers that keep the tests short."""

WITHOUT_REWARD = ("self-consistency", "multi-temperature", "deepconf")

WITH_EVIDENCE = ("smc", "power-smc", "importance", "tempered-smc", "waste-free-smc")

COMBINATIONS = [
    *((method, "exact") for method in SOLVING),
    *(
        (method, preset)
        for method in ("smc", "importance", "beam-search", "best-of-n")
        for preset in ("twisted", "as_paper", "its_hub", "entropic")
    ),
    *((method, "twisted") for method in FAST),
]


@pytest.mark.parametrize(("method", "preset"), COMBINATIONS)
def test_json_is_a_posterior(tables, method, preset):
    report = solved("--method", method, "--preset", preset, *FAST.get(method, []))
    assert sum(each["probability"] for each in report["answers"]) == pytest.approx(1.0)
    assert report["answer"] in [each["answer"] for each in report["answers"]]
    assert not report["partial"] and report["finished"] == report["particles"] > 0
    assert len(report["ess"]) == len(report["resampled"]) > 0
    best = report["best"]
    assert len(best["step_scores"]) == (0 if method in WITHOUT_REWARD else len(best["steps"]))
    assert all(score is None or 0 <= score <= 1 for score in best["step_scores"])
    assert f"\\boxed{{{report['answer']}}}" in best["steps"][-1]
    assert report["cost"]["tokens_sampled"] > 0 and report["cost"]["seconds"] > 0
    assert report["unit"] == METHODS[method].unit
    assert (report["log_evidence"] is None) == (report["no_evidence"] is not None) == (method not in WITH_EVIDENCE)


@pytest.mark.parametrize("method", SOLVING)
def test_tables_and_progress_of_every_method(tables, method):
    """A line per step, iteration or stage; the reason where there is no evidence; the method's own figures."""
    result = solve("--method", method, "--verbose", *FAST.get(method, []))
    assert result.exit_code == 0, result.output
    unit = METHODS[method].unit
    assert len(re.findall(rf"^{unit} \d+: ESS .* tokens/s$", result.stderr, re.MULTILINE)) >= 1
    search = method in (
        "beam-search",
        "dvts",
        "rebase",
        "dora",
        "best-first",
        "mcts",
        "ab-mcts",
        "speculative-rejection",
        "best-of-n",
        "soft-best-of-n",
        "best-of-majority",
        *WITHOUT_REWARD,
    )
    for part in (
        "Vote over answers" if search else "Posterior over answers",
        "" if search or method == "prefix-walk" else f"ESS per {unit}",
        "Best solution",
        "tokens sampled",
    ):
        assert part in result.stdout
    assert ("log evidence" in result.stdout) == (method in WITH_EVIDENCE)
    assert ("gives no evidence" in result.stdout) == (method not in WITH_EVIDENCE)
    for name, part in (("tempered-smc", "powers 0.3 1"), ("parallel-tempering", "swap rates ")):
        assert (part in result.stdout) == (name == method) or part == "powers 0.3 1"
    assert ("moved " in result.stdout) == (method in ("tempered-smc", "waste-free-smc"))


@pytest.mark.parametrize(
    ("method", "arguments", "key", "expected"),
    [
        ("smc", ["--islands", "3", "--particles", "4"], "islands", 3),
        ("smc", ["--particles", "5"], "particles", 5),
        ("particle-gibbs", ["--iterations", "3", "--particles", "2", "--resampler", "stratified"], "ess", 3),
        ("particle-gibbs", ["--references", "2", "--iterations", "1", "--particles", "4"], "particles", 8),
        ("pimh", ["--iterations", "5", "--particles", "3"], "iterations", 5),
        ("suffix-mh", ["--iterations", "6", "--warmup", "0"], "particles", 12),
        ("tempered-smc", ["--betas", "0.1,0.5,1", "--kernel", "particle-gibbs", "--particles", "3"], "betas", 3),
        ("parallel-tempering", ["--betas", "0,1", "--iterations", "2", "--warmup", "0"], "swap_rates", 1),
        ("beam-search", ["--beam-width", "2", "--expand", "3"], "particles", 6),
        ("dvts", ["--subtrees", "3", "--expand", "2"], "particles", 6),
        ("best-of-n", ["--particles", "3"], "scores", 3),
    ],
)
def test_options_reach_the_algorithm(tables, method, arguments, key, expected):
    report = solved("--method", method, *arguments)
    assert (len(report[key]) if isinstance(report[key], list) else report[key]) == expected
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert str(report["settings"][option[2:].replace("-", "_")]) == value


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("smc:particles=4:islands=2:resampler=ssp", ["--particles", "4", "--islands", "2", "--resampler", "ssp"]),
        ("smc:preset=twisted:audit=true", ["--preset", "twisted", "--audit"]),
        ("waste-free-smc:particles=6:chain_length=3:betas=0.3,1", ["--particles", "6", "--chain-length", "3", "--betas", "0.3,1"]),
    ],
)
def test_options_in_the_name_are_those_of_the_flags(tables, name, flags):
    named, apart = (without_times(solved(*arguments)) for arguments in (["--method", name], ["--method", name.partition(":")[0], *flags]))
    assert named == apart


def test_a_name_may_change_the_model(tables):
    report = solved("--method", "smc:potential=odds:aggregation=prod")
    assert (report["settings"]["potential"], report["best"]["aggregation"]) == ("odds", "prod")


def test_ancestor_sampling(tables):
    report = solved("--method", "particle-gibbs", "--ancestor-sampling", *FAST["particle-gibbs"])
    assert report["settings"]["ancestor_sampling"] is True
    assert solve("--ancestor-sampling").exit_code == 2


def test_a_budget_of_tokens_stops_the_filter(tables):
    tables(tabular_lm(ends=False), Prm())
    report = solved("--max-tokens-total", "100", "--max-tokens", "4", "--particles", "4")
    assert 100 <= report["cost"]["tokens_sampled"] < 120
    assert report["complete"] is False and not report["partial"]


def test_methods_are_listed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = run("methods")
    assert result.exit_code == 0
    for name, method in METHODS.items():
        assert re.search(rf"^{name}\s+{re.escape(method.line)}\s*$", result.stdout, re.MULTILINE)
    assert run("solve", "--method", "list").stdout == result.stdout


def test_the_seed_fixes_the_result(tables):
    first, again, other = (without_times(solved("--seed", seed)) for seed in ("3", "3", "4"))
    assert first == again
    assert first["log_evidence"] != other["log_evidence"]


def test_the_presets_scheme_holds_unless_another_is_given(tables):
    preset = solved("--preset", "as_paper")["settings"]
    assert (preset["resampler"], preset["ess_threshold"]) == ("multinomial", 1.0)
    given = solved("--preset", "as_paper", "--resampler", "ssp", "--ess-threshold", "0")
    assert (given["settings"]["resampler"], given["settings"]["ess_threshold"]) == ("ssp", 0.0)
    assert not any(given["resampled"])


def test_tables_show_posterior_solution_and_cost(tables):
    result = solve("--audit")
    assert result.exit_code == 0, result.output
    for part in ("Posterior over answers", "log evidence", "Best solution", "\\boxed{1}", "tokens sampled", "audit passed"):
        assert part in result.stdout
    assert result.stderr == "", "no progress where there is no terminal"


def test_verbose_writes_a_line_per_step(tables):
    result = solve("--json", "--verbose")
    assert len(re.findall(r"^step \d+: ESS .* tokens/s$", result.stderr, re.MULTILINE)) == len(json.loads(result.stdout)["ess"])


def test_reads_standard_input(tables):
    assert solved(problem="-", stdin="ab\n")["problem"] == "ab"


def test_best_solution_has_the_highest_weight_among_those_with_the_answer(tables):
    report = solved("--method", "importance", "--particles", "200")
    # Weights of importance sampling are products of scores; the best particle with answer 1 has the largest of them.
    product = torch.tensor(report["best"]["step_scores"]).prod().item()
    evidence = torch.tensor(report["log_evidence"]).exp().item()
    assert report["best"]["weight"] == pytest.approx(product / (200 * evidence), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "scm"], "unknown method 'scm'; did you mean 'smc'?"),
        (["--preset", "exat"], "unknown preset 'exat'; did you mean 'exact'?"),
        (["--resampler", "systemic"], "unknown resampler 'systemic'; did you mean 'systematic'?"),
        (["--particles", "0"], "--particles must be an integer of at least 1, got 0"),
        (["--ess-threshold", "1.01"], "--ess-threshold must lie in [0, 1]"),
        (["--ess-threshold", "nan"], "--ess-threshold must lie in [0, 1]"),
        (["--max-tokens", "0"], "--max-tokens must be an integer of at least 1, got 0"),
        (["--max-steps", "0"], "--max-steps must be an integer of at least 1, got 0"),
        (["--temperature", "0"], "--temperature must be positive"),
        (["--seed", "-1"], "--seed must lie in 0 .."),
        (
            ["--method", "importance", "--resampler", "ssp"],
            "--resampler has no effect with --method importance; it goes with smc",
        ),
        (
            ["--method", "beam-search", "--particles", "8"],
            "--particles has no effect with --method beam-search; it goes with",
        ),
        (["--beam-width", "2"], "--beam-width has no effect with --method smc; it goes with beam-search"),
        (["--method", "dvts", "--audit"], "--audit has no effect with --method dvts; it goes with smc, power-smc, importance"),
        (["--method", "dvts", "--subtrees", "0"], "--subtrees must be an integer of at least 1, got 0"),
        (["--method", "suffix-mh", "--iterations", "0"], "--iterations must be an integer of at least 1, got 0"),
        (["--method", "suffix-mh", "--warmup", "-1"], "--warmup must be an integer of at least 0, got -1"),
        (
            ["--method", "tempered-smc", "--betas", "0,x"],
            "--betas must be numbers separated by commas",
        ),
        (["--method", "tempered-smc", "--betas", "0,0.5"], "--betas must be increasing powers"),
        (["--method", "parallel-tempering", "--betas", "adaptive"], "--betas must be a list, each a number"),
        (["--method", "tempered-smc", "--kernel", "sufix-mh"], "unknown kernel 'sufix-mh'; did you mean 'suffix-mh'?"),
        (["--method", "particle-gibbs", "--resampler", "ssp"], "unknown conditional resampler 'ssp'"),
        (["--method", "particle-gibbs", "--preset", "as_paper"], "choose --preset exact or twisted, or --method smc"),
        (["--method", "particle-gibbs", "--references", "0"], "--references must be an integer of at least 1, got 0"),
        (["--islands", "0"], "--islands must be an integer of at least 1, got 0"),
        (["--device", "abacus"], "--device 'abacus'"),
        (["--lm", "/no/such/model"], "/no/such/model"),
        (["--lm", "demo"], "does not look like one. Try: ppl-llm solve '"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(monkeypatch, arguments, message):
    if "/no/such/model" not in arguments:
        monkeypatch.setattr(loading, "load_lm", lambda *_: pytest.fail("a model was loaded"))
    result = solve(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("problem", ["", "  \n", "-"])
def test_empty_problem(tables, problem):
    result = solve(problem=problem, stdin="")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "the problem is empty" in result.stderr


def test_directory_without_safetensors(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    result = solve("--lm", str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr and "safetensors" in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_of_the_library_while_running_are_one_line(tables):
    result = solve(problem="ab?")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'ab?'" in result.stderr
    assert "Traceback" in solve("--verbose", problem="ab?").stderr


def test_a_defect_keeps_its_traceback(tables):
    tables(tabular_lm(), Prm(fail_at=2, error=ZeroDivisionError))
    assert isinstance(solve().exception, ZeroDivisionError)


def test_interrupted_in_the_middle_shows_the_partial_posterior(tables):
    tables(tabular_lm(ends=False), Prm(fail_at=3))
    result = solve("--json", "--max-tokens", "4")
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert report["partial"] and len(report["ess"]) == 2
    assert report["answer"] is None and report["answers"] == [{"answer": None, "probability": pytest.approx(1.0)}]
    assert report["cost"]["tokens_sampled"] > 0

    tables(tabular_lm(), Prm(fail_at=3))
    result = solve()
    assert result.exit_code == 130
    assert "Partial posterior over answers: interrupted after 2 steps" in result.stdout


LONG = {
    **{name: ["--iterations", "100", "--warmup", "0"] for name, each in SOLVING.items() if each.option("iterations")},
    "prefix-walk": ["--iterations", "100", "--warmup", "0", "--walk-steps", "4"],
    "tempered-smc": ["--betas", "0.1,0.2,0.3,0.4,0.5,1"],
    "waste-free-smc": ["--betas", "0.1,0.2,0.3,0.4,0.5,1"],
}


@pytest.mark.parametrize("method", SOLVING)
def test_every_method_shows_what_it_has(tables, method):
    """Interrupted at a call of the reward model (of the language model where a method asks no other)."""
    fail_at = {"tempered-smc": 15, "waste-free-smc": 40}.get(method, 40 if method in LONG else 2)
    lm, prm = tabular_lm(), Prm(fail_at=None if method in WITHOUT_REWARD else fail_at)
    if method in WITHOUT_REWARD:
        draw, calls = lm.sample_step, []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return draw(*arguments)

        lm.sample_step = interrupted
    tables(lm, prm)
    result = solve("--json", "--method", method, *LONG.get(method, []))
    assert result.exit_code == 130, result.output
    report = json.loads(result.stdout)
    assert report["partial"] and len(report["ess"]) > 0
    assert sum(each["probability"] for each in report["answers"]) == pytest.approx(1.0)
    assert report["cost"]["tokens_sampled"] > 0


def test_interrupted_in_the_warm_up(tables):
    tables(tabular_lm(), Prm(fail_at=40))
    result = solve("--json", "--method", "suffix-mh", "--warmup", "1000")
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert report["partial"] and report["iterations"] == 1 and report["particles"] == 2


def test_interrupted_before_the_first_step(tables):
    tables(tabular_lm(), Prm(fail_at=1))
    result = solve("--json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "nothing to show" in result.stderr


def test_interrupt_outside_of_the_run_shows_no_posterior(tables, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_prm", interrupted)
    result = solve()
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


SLOW = """
    import signal, sys, time
    import ppl_llm.cli.loading as loading
    from ppl_llm.cli import main
    from test_cli import Prm, tabular_lm

    class SlowPrm(Prm):
        def step_log_odds(self, context):
            time.sleep(0.1)
            return super().step_log_odds(context)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, whatever started the tests
    loading.load_lm = lambda *_, **__: tabular_lm(ends=False)
    loading.load_prm = lambda *_, **__: SlowPrm()
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT of another process")
def test_a_real_interrupt():
    arguments = ["solve", "ab", "--lm", "table", "--max-steps", "1000", "--max-tokens", "4", "--json", "--verbose"]
    command = [sys.executable, "-c", textwrap.dedent(SLOW), *arguments]
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.abspath(os.path.join(here, "..", "..", "..")), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("step 2:"):
                child.send_signal(signal.SIGINT)
        assert child.stdout is not None
        report = json.loads(child.stdout.read())
        assert child.wait(timeout=30) == 130
    finally:
        child.kill()
        child.communicate()
    assert report["partial"] and len(report["ess"]) >= 2


# the models in the package ---------------------------------------------------------------------------------------------------------------


def test_solves_a_demo_problem():
    arguments = ["solve", example(1).text, "--json"]
    result, again = run(*arguments), run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert sum(each["probability"] for each in report["answers"]) == pytest.approx(1.0)
    assert report["finished"] == 16
    assert {"tokens_sampled", "tokens_prefilled", "lm_forwards", "prm_tokens", "prm_forwards"} <= set(report["cost"])
    assert without_times(report) == without_times(json.loads(again.stdout))
    other = json.loads(run(*arguments, "--seed", "1").stdout)
    assert other["log_evidence"] != report["log_evidence"]


SMALL = {
    **FAST,
    "smc": ["--particles", "4", "--islands", "2", "--audit"],
    "importance": ["--particles", "4", "--audit"],
    "power-smc": ["--particles", "4", "--moves", "1"],
    "power-mh": ["--iterations", "3"],
    "beam-search": ["--beam-width", "2", "--expand", "2"],
    "dvts": ["--subtrees", "2", "--expand", "2", "--filter-duplicates", "--lookahead", "1"],
    "best-first": ["--expand", "2", "--continuations", "20"],
    "mcts": ["--simulations", "20", "--simulation-batch", "2", "--exploration", "0.5", "--widening", "2", "--value", "rollout"],
    "ab-mcts": ["--simulations", "20", "--simulation-batch", "2", "--score-posterior", "beta"],
    "speculative-rejection": ["--particles", "8", "--keep", "0.5", "--marks", "1,3", "--mark-unit", "steps"],
    "dora": ["--particles", "4", "--diversity-temperature", "0.1"],
    "rebase": ["--particles", "4", "--allocation-temperature", "0.5"],
    "best-of-n": ["--particles", "4"],
    "soft-best-of-n": ["--particles", "4"],
    "best-of-majority": ["--particles", "4"],
    "self-consistency": ["--particles", "4"],
    "multi-temperature": ["--particles", "6"],
    "deepconf": ["--particles", "4"],
}


@pytest.mark.parametrize("method", SOLVING)
def test_every_method_on_the_demo_models(method):
    result = run("solve", example(1).text, "--json", "--method", method, *SMALL[method])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert sum(each["probability"] for each in report["answers"]) == pytest.approx(1.0)
    assert report["finished"] > 0 and report["best"]["steps"]
    assert (report["audit"] or {"error": 0.0})["error"] == 0.0
    assert (report["audit"] is not None) == ("--audit" in SMALL[method])
    assert (report["cost"].get("prm_forwards", 0) == 0) == (method in WITHOUT_REWARD)


def test_audit_passes_on_the_demo_models():
    result = run("solve", example(2).text, "--prm", "demo-weak", "--audit", "--json", "--particles", "8")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["audit"]["error"] == 0.0


def test_forced_onto_the_demo_model():
    result = run("solve", "What is 2 + 2?", "--force", "--json", "--particles", "2", "--max-steps", "2", "--max-tokens", "8")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["max_tokens"] == 8


def test_prompt_longer_than_the_context():
    result = run("solve", example(1).text * 200, "--force")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "tokens" in result.stderr and "context" in result.stderr


def test_a_language_model_is_no_reward_model():
    from ppl_llm.demo import LM_DIR

    result = run("solve", example(1).text, "--prm", str(LM_DIR))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert str(LM_DIR) in result.stderr


def test_reward_model_whose_tokenizer_lacks_the_step_token(tmp_path):
    from ppl_llm.demo import PRM_DIR

    shutil.copytree(PRM_DIR, tmp_path / "prm")
    for file in (tmp_path / "prm").glob("*.json"):
        file.write_text(file.read_text().replace("<extra_0>", "<other_0>"))
    result = run("solve", example(1).text, "--prm", str(tmp_path / "prm"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "<extra_0>" in result.stderr


class AnyProblem(TabularLM):
    """Takes problems in words."""

    def start(self, problem):
        return super().start("ab")


def test_version_and_examples_in_help():
    assert re.fullmatch(r"ppl-llm \d+\.\d+\.\d+\n", run("--version").stdout)
    for command in ([], ["solve"], ["demo"]):
        assert "Examples" in run(*command, "--help").stdout


def test_help_does_not_wait_for_torch():
    code = "import sys, ppl_llm.cli; sys.exit('torch' in sys.modules or 'pyro' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_demo_problem_is_recognised_at_every_level(tables):
    tables(AnyProblem(tabular_lm().logits, SYMBOLS, eos="$"), Prm())
    for level in range(1, 7):
        assert run("solve", make_problem(level, random.Random(level)).text, "--particles", "2").exit_code == 0


def test_control_characters_do_not_reach_the_terminal():
    assert plain("a\x1b[31mb\n") == "a\ufffd[31mb\n"
