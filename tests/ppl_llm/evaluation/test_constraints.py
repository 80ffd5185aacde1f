"""Evaluations under a constraint: weighed methods only, the global target, records that know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_llm import Problem, TabularLM
from ppl_llm.evaluation import Models, evaluate

SYMBOLS = ["a", "1", "2", "$"]
LM = TabularLM(torch.tensor([0.0, 1.0, 0.0, 0.5], dtype=torch.float64).expand(4, 4).contiguous(), SYMBOLS, eos="$")
PROBLEMS = [Problem(id=str(i), text="a" * (i + 1), answer="12") for i in range(2)]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Models, "_load_lm", lambda *_, **__: LM)
    return lambda **options: Models("table", reward="none", max_steps=4, **options)


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for path in sorted(out.rglob("*.jsonl")) for line in path.read_text().splitlines()]
    return [line for line in lines if "method" in line]


def test_answers_are_of_the_language_and_weighed(models: Any, tmp_path: Path) -> None:
    """Plain arithmetic; 4,000 weighted samples, whose effective number is above 1,000: 5 standard deviations, false alarm below 1e-6."""
    evaluate(PROBLEMS, models(choices=("12", "2")), tmp_path, methods=["importance", "smc"], budgets=[4000])
    p = LM.logits[0].softmax(-1).tolist()
    texts = {"12": p[1] * p[2] * p[3], "2": p[2] * p[3]}
    total = sum(texts.values())
    found = records(tmp_path)
    assert {record["method"] for record in found} == {"importance", "smc"}
    for record in found:
        assert set(record["answers"]) == {"12", "2"}
        q = texts["12"] / total
        assert abs(record["answers"]["12"] - q) < 5 * (q * (1 - q) / 1000) ** 0.5
    smc = next(record for record in found if record["method"] == "smc")
    assert smc["log_evidence"] == pytest.approx(float(torch.tensor(total).log()), abs=0.1)


@pytest.mark.parametrize("method", ["self-consistency", "best-of-n", "beam-search"])
def test_methods_that_weigh_no_proposals_are_refused(models: Any, tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match=f"no effect with method {method}; they go with smc, power-smc, importance"):
        evaluate(PROBLEMS, models(choices=("12", "2")), tmp_path, methods=[method], budgets=[2])
    assert not records(tmp_path)


def test_another_constraint_is_another_run(models: Any, tmp_path: Path) -> None:
    evaluate(PROBLEMS, models(choices=("12", "2")), tmp_path, methods=["smc"], budgets=[2])
    with pytest.raises(ValueError, match=r"other settings \(choices"):
        evaluate(PROBLEMS, models(choices=("12",)), tmp_path, methods=["smc"], budgets=[2])


def test_mistakes_are_known_before_a_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="the extra `constraints`")
    with pytest.raises(ValueError, match="cannot be compiled"):
        Models(json_schema='{"type": "strin"}').check()
    with pytest.raises(ValueError, match="a server does not tell them"):
        Models("http://localhost:1/v1", reward="none", regex="a").check()
    assert "Product" in Models(regex="a", choices=("a", "b")).vote_options()["proposals"].__name__
