"""The command ``demo``: its figures against a count by hand, what it says of noise, and interruption."""

from __future__ import annotations

import math
import re

import pyro
import pytest
from rich.console import Console
from typer.testing import CliRunner

import ppl_llm.cli.loading as loading
from ppl_llm import SMC, Importance, TransformersLM, TransformersPRM, majority, reasoning
from ppl_llm.cli import app
from ppl_llm.cli.comparison import IMPORTANCE, PASS_AT_1, VOTE, Comparison, Row, problems_of, sign_test
from ppl_llm.cli.comparison import SMC as FILTER


def run(*arguments: str):
    return CliRunner().invoke(app, ["demo", *arguments])


@pytest.fixture(scope="module")
def models():
    return TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")


def test_problems_are_held_out_and_of_the_levels_in_turn():
    problems = problems_of([4, 6], 5, seed=1)
    assert [problem.level for problem in problems] == [4, 6, 4, 6, 4]
    assert len({problem.text for problem in problems}) == 5 and problems != problems_of([4, 6], 5, seed=2)


def test_figures_are_those_of_the_posteriors(models):
    problems = problems_of([2, 4], 4, seed=0)
    comparison = Comparison(problems, 6, 3, Console(stderr=True))
    assert comparison.run(*models)
    model, texts, gold = reasoning(*models), [p.text for p in problems], [p.answer for p in problems]
    pyro.set_rng_seed(3)
    independent = Importance(model, 6, max_plate_nesting=1).run(texts)
    pyro.set_rng_seed(3)
    filtered = SMC(model, 6, max_plate_nesting=1, **model.preset.smc).run(texts)
    samples = list(zip(*independent.value.answers(), strict=True))
    expected = {
        PASS_AT_1: [each.count(answer) / 6 for each, answer in zip(samples, gold, strict=True)],
        VOTE: [float(majority(each) == answer) for each, answer in zip(samples, gold, strict=True)],
        IMPORTANCE: [float(a == answer) for a, answer in zip(model.choose(independent), gold, strict=True)],
        FILTER: [float(a == answer) for a, answer in zip(model.choose(filtered), gold, strict=True)],
    }
    assert {row.name: row.right for row in comparison.rows} == expected
    tokens = [int(posterior.cost["tokens_sampled"]) for posterior in (independent, filtered)]
    assert [row.tokens for row in comparison.rows] == [tokens[0]] * 3 + tokens[1:]
    shown = comparison.shown
    assert shown is not None and shown.problem in problems
    assert len(shown.solution.steps) == len(shown.solution.step_scores) > 1


def test_the_command_shows_bars_noise_and_a_solution():
    result = run("--problems", "3", "--levels", "1,2,3", "--particles", "4")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for name in (PASS_AT_1, VOTE, IMPORTANCE, FILTER):
        assert re.search(rf"^{re.escape(name)} +[\d.]+ +\d+%", result.stdout, re.MULTILINE)
    assert "━" in result.stdout or "#" in result.stdout
    for part in (
        "3 held-out problems of level 1, 2, 3",
        "seed 0",
        "This is one seed",
        "A problem of level",
        "Next: ppl-llm solve",
    ):
        assert part in result.stdout


@pytest.mark.parametrize(("more", "fewer", "p"), [(0, 0, 1.0), (3, 0, 0.25), (5, 1, 14 / 64), (6, 0, 2 / 64), (2, 2, 1.0)])
def test_sign_test(more, fewer, p):
    assert sign_test(more, fewer) == pytest.approx(p)
    assert sign_test(fewer, more) == sign_test(more, fewer)
    assert math.isclose(sign_test(8, 1), 2 * (1 + 9) / 2**9)


@pytest.mark.parametrize(
    ("filtered", "words"),
    [
        ([1.0] * 6, "SMC alone solves 6, majority vote alone 0: more than chance explains"),
        ([1.0] * 3 + [0.0] * 3, "3, majority vote alone 0: within"),
    ],
)
def test_what_it_says_of_the_difference(filtered, words):
    comparison = Comparison(problems_of([4], 6, 0), 2, 0, Console())
    comparison.rows = [Row(name, [0.0] * 6, 0, False) for name in (PASS_AT_1, VOTE, IMPORTANCE)] + [Row(FILTER, filtered, 0, False)]
    assert any(words in line for line in comparison._caveats())
    comparison.rows[-1] = Row(FILTER, [0.0] * 6, 0, False)
    assert "SMC and majority vote solve the same problems." in comparison._caveats()


class Interrupting:
    """A reward model that is interrupted at a given call."""

    def __init__(self, prm, at: int) -> None:
        self.prm, self.at, self.calls = prm, at, 0

    def step_log_odds(self, context):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.prm.step_log_odds(context)


@pytest.mark.parametrize(("at", "rows"), [(3, 3), (9, 4)])
def test_an_interrupt_keeps_what_is_there(models, monkeypatch, at, rows):
    monkeypatch.setattr(loading, "load_lm", lambda *_, **__: models[0])
    monkeypatch.setattr(loading, "load_prm", lambda *_, **__: Interrupting(models[1], at))
    result = run("--problems", "2", "--levels", "4", "--particles", "3")
    assert result.exit_code == 130
    assert len(re.findall(r"^\S.*\d%", result.stdout, re.MULTILINE)) == rows
    assert result.stdout.count("(interrupted)") == (3 if rows == 3 else 1)


def test_an_interrupt_before_the_first_step_has_nothing_to_show(models, monkeypatch):
    monkeypatch.setattr(loading, "load_lm", lambda *_, **__: models[0])
    monkeypatch.setattr(loading, "load_prm", lambda *_, **__: Interrupting(models[1], 1))
    result = run("--problems", "2", "--levels", "4", "--particles", "3")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "nothing to show" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "4,9"], "no level 9"),
        (["--levels", "easy"], "'easy'"),
        (["--particles", "0"], "--particles must be"),
        (["--problems", "0"], "--problems must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input(arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
