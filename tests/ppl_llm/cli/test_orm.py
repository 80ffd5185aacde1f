"""A sequence classifier as the reward of ``solve``, ``evaluate``, ``check`` and the gateway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm import TransformersLM, TransformersORM
from ppl_llm.cli import app
from ppl_llm.cli.orm_checks import PROBLEM, RIGHT, WRONG
from ppl_llm.demo import example
from ppl_llm.evaluation.aggregators import CERTAIN
from ppl_llm.evaluation.records import read_records
from ppl_llm.gateway import Gateway, Served
from ppl_llm.tasks import load_problems
from tests.helpers.gateway import running
from tests.helpers.tiny_models import plain_scores, write_lm, write_orm, write_prm

TEXT = example(1).text
LIMITS = ["--max-steps", "8", "--max-tokens", "40", "--max-tokens-completion", "120"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orm(tmp_path_factory.mktemp("models") / "orm")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def solved(*arguments: Any) -> dict[str, Any]:
    result = run("solve", TEXT, *LIMITS, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("method", ["smc", "best-of-n", "importance", "beam-search", "suffix-mh"])
def test_solve_scores_the_finished_answer(method: str, directory: Path) -> None:
    """The score of the best solution is that of a plain forward pass, and steps before the last have none."""
    report = solved("--reward", f"orm:{directory}", "--method", method)
    assert report["settings"]["reward"] == f"orm:{directory}" and report["settings"]["prm"] is None
    best = report["best"]
    score = float(plain_scores(directory, TEXT, ["".join(best["steps"])])[0].sigmoid())
    assert best["score"] == pytest.approx(score, abs=1e-5)
    assert best["step_scores"][:-1] == [None] * (len(best["steps"]) - 1)
    assert report["cost"]["prm_calls"] > 0


class OtherAnswer(TransformersORM):
    """The score of another answer of the batch."""

    def answer_log_odds(self, answers: Any) -> Any:
        return super().answer_log_odds(answers).roll(1)


def best_of_n_is_right(directory: Path, out: Path) -> bool:
    """Whether every recorded score, and every choice of best-of-n among eight, is that of plain forward passes."""
    limits = [*LIMITS, "--budgets", "8", "--limit", "3", "--keep-texts"]
    made = run("evaluate", "demo", "--reward", f"orm:{directory}", "--methods", "importance,best-of-n", *limits, "--out", out)
    assert made.exit_code == 0, made.output
    records = {(r["problem"], r["method"]): r for r in read_records(out)}
    assert json.loads((out / "configuration.json").read_text())["reward"] == f"orm:{directory}"
    right = True
    for problem in load_problems("demo", limit=3):
        candidates = records[problem.id, "importance"]["candidates"]
        plain = plain_scores(directory, problem.text, [c["text"] for c in candidates]).tolist()
        scores = [score if c["finished"] else -CERTAIN for score, c in zip(plain, candidates, strict=True)]
        assert len({round(score, 3) for score in scores}) > 2
        best = max(range(8), key=scores.__getitem__)
        right &= [c["log_odds"][-1] for c in candidates] == pytest.approx(scores, abs=1e-4)
        right &= records[problem.id, "best-of-n"]["answer"] == candidates[best]["answer"]
    return right


def test_best_of_n_takes_what_the_classifier_scores_highest(directory: Path, tmp_path: Path) -> None:
    assert best_of_n_is_right(directory, tmp_path / "run")


def test_the_scores_of_other_answers_are_rejected(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.reward.transformers_orm.TransformersORM", OtherAnswer)
    assert not best_of_n_is_right(directory, tmp_path / "run")


def test_evaluate_resumes_with_the_same_classifier_only(directory: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "demo", *LIMITS, "--limit", 1, "--methods", "smc", "--out", tmp_path / "run"]
    first = run(*arguments, "--budgets", 2, "--reward", f"orm:{directory}")
    assert first.exit_code == 0, first.output
    before = list(read_records(tmp_path / "run"))
    again = run(*arguments, "--budgets", "2,4", "--reward", f"orm:{directory}")
    assert again.exit_code == 0 and list(read_records(tmp_path / "run"))[: len(before)] == before
    other = run(*arguments, "--budgets", 8, "--reward", f"orm:{write_orm(tmp_path / 'other', labels=2)}")
    assert other.exit_code == 2 and f"reward: 'orm:{directory}' there" in other.stderr


def test_one_line_for_each_mistake(directory: Path, tmp_path: Path) -> None:
    lm, prm = write_lm(tmp_path / "lm"), write_prm(tmp_path / "prm")
    bare = Path(shutil.copytree(directory, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    finished_only = f"orm:{directory} judges finished ones only: take preset exact or twisted"
    for arguments, message in [
        (["--reward", "orm"], "lacks a name: orm:DIR, a sequence classifier"),
        (["--reward", "orm:./nowhere"], "no model directory './nowhere'"),
        (["--reward", "orm:http://host:8000/v1"], "is the address of a server: give a directory"),
        (["--reward", f"orm:{lm}"], "--reward judge:DIR"),
        (["--reward", f"orm:{prm}"], "--reward prm:DIR"),
        (["--reward", f"orm:{bare}"], "holds no tokenizer"),
        (["--reward", f"orm:{directory}", "--prm", "demo"], "are two rewards; give one"),
        (["--reward", f"orm:{directory}", "--yes", "1"], f"--yes is for a judge, and the reward is orm:{directory}"),
        (["--reward", f"orm:{directory}", "--calibration", "c.json"], "--calibration is for a process reward model"),
        *((["--reward", f"orm:{directory}", "--preset", name], finished_only) for name in ("as_paper", "its_hub", "entropic")),
        (["--reward", f"orm:{directory}", "--method", "smc:preset=as_paper"], finished_only),
        (["--lm", lm, "--method", "best-of-n"], "--reward judge, orm:DIR"),
    ]:
        result = run("solve", TEXT, *LIMITS, *arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, (arguments, result.output)
    evaluated = run("evaluate", "demo", "--methods", "smc:preset=as_paper", "--reward", f"orm:{directory}", "--out", tmp_path / "run")
    assert evaluated.exit_code == 2 and finished_only in evaluated.stderr


def test_positions_of_a_text_are_judged_where_they_are_asked_for(directory: Path) -> None:
    """The released weights need odds of beginnings, which ``--every`` gives them."""
    report = solved("--reward", f"orm:{directory}", "--every", "line", "--preset", "as_paper", "--particles", 4)
    best = report["best"]
    lines = ["".join(best["steps"][: t + 1]) for t in range(len(best["steps"]))]
    wanted = plain_scores(directory, TEXT, lines).sigmoid().tolist()
    found = [(score, plain) for score, plain in zip(best["step_scores"], wanted, strict=True) if score is not None]
    assert len(found) > 1 and all(score == pytest.approx(plain, abs=1e-5) for score, plain in found)


def test_a_method_that_asks_no_reward_loads_none(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersORM, "from_pretrained", lambda *_, **__: pytest.fail("the classifier was loaded"))
    voted = run("solve", TEXT, *LIMITS, "--method", "self-consistency", "--reward", f"orm:{directory}")
    assert voted.exit_code == 0 and f"asks no reward: orm:{directory} is not loaded" in voted.stderr


def test_answers_that_may_not_fit_are_told_of(tmp_path: Path) -> None:
    small = write_orm(tmp_path / "small", max_position_embeddings=64)
    arguments = ["--lm", write_lm(tmp_path / "lm"), "--max-steps", 1, "--max-tokens", 4, "--method", "best-of-n"]
    told = run("solve", "1+1", *arguments, "--max-tokens-completion", 100, "--reward", f"orm:{small}")
    assert "solutions may have 100 tokens, and the reward model reads 64 at most" in told.stderr


def checked(*arguments: Any, code: int | None = None) -> dict[str, Any]:
    result = run("check", *arguments, "--json")
    assert code in (None, result.exit_code), result.output
    report = json.loads(result.stdout)
    return report | {found["name"]: found for found in report["findings"]}


def test_check_recognises_a_classifier(directory: Path, tmp_path: Path) -> None:
    known = TransformersORM.from_pretrained(directory).answer_log_odds([(PROBLEM, RIGHT), (PROBLEM, WRONG)]).diff()
    report = checked(directory, code=int(known > 0))
    assert report["kind"] == "orm" and report["ok"] is bool(known < 0)
    assert report["model"]["detail"] == "Qwen2ForSequenceClassification with contexts of 1024 tokens"
    assert "a single score" in report["labels"]["detail"] and report["chat template"]["ok"]
    two = checked(write_orm(tmp_path / "two", labels=2), "--kind", "orm")
    assert "label 1 of 2, 'LABEL_1', means right" in two["labels"]["detail"]
    served = run("check", "http://host:8000/v1", "--kind", "orm")
    assert served.exit_code == 2 and "is the address of a server" in served.stderr


def test_the_gateway_serves_it(directory: Path) -> None:
    orm = TransformersORM.from_pretrained(directory)
    served = Gateway(Served("demo", TransformersLM.from_pretrained("demo"), orm, {"max_tokens_completion": 120}))
    with running(served=served) as up:
        replied = up.chat(TEXT, model="demo:best-of-n-4")
        assert replied.status_code == 200, replied.text
        refused = up.chat(TEXT, model="demo:smc-4:preset=as_paper")
        assert refused.status_code == 400 and "judges finished ones only" in refused.json()["error"]["message"]
