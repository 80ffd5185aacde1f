"""Evaluations whose answers a verifier judges, in the run and again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_llm.evaluation.calibrate import calibrate
from ppl_llm.evaluation.pool import Pool
from ppl_llm.evaluation.records import Key, read_records
from ppl_llm.evaluation.results import OFFLINE, Results
from ppl_llm.evaluation.run import evaluate
from ppl_llm.evaluation.source import Models
from ppl_llm.evaluation.work import plan
from ppl_llm.tasks.load import load_problems, open_task
from tests.helpers.fake_gym import fake_gym
from tests.helpers.runs import record, sample

MODELS = Models(max_steps=6, max_tokens=40)
EASY = [problem for problem in load_problems("demo", limit=60) if problem.metadata["level"] == 1][:4]
ROWS = [(problem.text, str(problem.answer), 1) for problem in EASY]


def without(records: Any, *names: str) -> dict[Key, Any]:
    return {Key.of(r): {name: value for name, value in r.items() if name not in ("seconds", "problem", *names)} for r in records}


def test_an_evaluation_with_a_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier reads the answers in every base, the right ones are written in base 16: all judgements are those of the plain data
    set with the same problems, and a comparison with the right answers would find none of them.
    """
    arguments: dict[str, Any] = {"methods": ["importance", "best-of-n", "smc"], "budgets": [4], "group_size": 4}
    plain = [type(p)(f"sums-0-{i}", p.text, p.answer) for i, p in enumerate(EASY)]
    evaluate(plain, MODELS, tmp_path / "plain", **arguments)
    with fake_gym(monkeypatch, tmp_path / "site", ROWS):
        problems = list(open_task("reasoning-gym:sums", {"instruction": ""}).problems())
        evaluate(problems, MODELS, tmp_path / "run", **arguments)
        with Pool(MODELS, [problems], workers=1) as pool:
            elsewhere = [record for outcome in pool.run(list(plan(1, ["smc"], [4], [0]))) for record in outcome.records]
    judged, compared = list(read_records(tmp_path / "run")), list(read_records(tmp_path / "plain"))
    differing = ("gold", "verdicts", "level", "configuration")
    assert without(judged, *differing) == without(compared, *differing)
    assert 0 < sum(r["correct"] for r in judged) < len(judged)
    assert {r["problem"]: r["correct"] for r in elsewhere} == {
        r["problem"]: r["correct"] for r in judged if (r["method"], r["budget"]) == ("smc", 4)
    }
    ours, theirs = Results(judged), Results(compared)
    for vote in OFFLINE:
        np.testing.assert_array_equal(ours.offline(vote, 4), theirs.offline(vote, 4))
    assert ours.coverage([1, 4]) == theirs.coverage([1, 4]) and ours.coverage([4])[0] > 0
    bare = Results([{name: value for name, value in r.items() if name != "verdicts"} for r in judged])
    assert bare.coverage([4]) == [0.0]
    with fake_gym(monkeypatch, tmp_path / "newer", ROWS, version="10"):
        again = list(open_task("reasoning-gym:sums", {"instruction": ""}).problems())
        with pytest.raises(ValueError, match=r"verifiers: .*'version': '9\.9'.* there, .*'version': '10'.* now"):
            evaluate(again, MODELS, tmp_path / "run", **arguments)


def test_verdicts_in_records_decide() -> None:
    pool = [sample("2", 1.0), sample("1", 3.0), sample("2", 1.5), sample("0x2", 0.0)]
    verdicts = {"2": 1.0, "1": 0.5, "0x2": 1.0}
    rows = [record(p, "importance", 4, 0, True, candidates=pool, gold=None, verdicts=verdicts) for p in ("p", "q")]
    results = Results(rows)
    assert results.is_right("p", "2") and results.is_right("p", "0x2") and not results.is_right("p", "1")
    assert not results.is_right("p", None)
    assert results.offline("majority", 4).mean() == 1.0 and results.offline("best-of-n, last", 4).mean() == 0.0
    assert results.coverage([1]) == [0.75]
    with pytest.raises(ValueError, match="no record has a verdict on answer '3' to problem 'p'"):
        results.is_right("p", "3")
    with pytest.raises(ValueError, match="do not rise with the labels"):  # the labels are the verdicts: the best score is wrong
        calibrate(results)


def test_an_unknown_right_answer_is_never_met() -> None:
    pool = [sample("None", 1.0), {**sample("x", 1.0), "answer": None}]
    results = Results([record("p", "importance", 2, 0, False, candidates=pool, gold=None)])
    assert results.offline("majority", 2).mean() == 0.0 and results.offline("majority", 1).mean() == 0.0
