"""What the benchmarks report: spreads, ratios within a turn, slopes, tables and records; and that a count of padding counts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_figures(load: Any):
    common = load("common")
    assert common.Spread.of([3.0, 1.0, 2.0, 10.0]) == (1.0, 2.5, 10.0, 4)
    assert common.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == (2.0, 3.0, 4.0, 3)  # of each turn, not of the medians
    assert common.slope([1, 10, 100], [5.0, 500.0, 50000.0]) == pytest.approx(2)
    assert common.slope([1, 2, 4], [3.0, 3.0, 3.0]) == pytest.approx(0)


def test_runs_take_turns(load: Any):
    calls: list[str] = []
    measured = load("common").in_turns({name: (lambda name=name: calls.append(name) or name) for name in "ab"}, repeats=2, warm_up=1)
    assert "".join(calls) == "ababab"
    assert {name: [result for _, result in each] for name, each in measured.items()} == {"a": ["a", "a"], "b": ["b", "b"]}
    assert all(seconds >= 0 for each in measured.values() for seconds, _ in each)


def test_records_say_how_they_were_made(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    common = load("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [{"way": "one", "ms": common.Spread.of([1.0, 2.0])}, {"way": "two", "ms": common.Spread.of([3.0])}]
    for _ in range(2):
        common.record("some", rows, {"sequences": 3})
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [line["way"] for line in lines] == ["one", "two"] * 2
    assert lines[0]["ms"] == {"least": 1.0, "median": 1.5, "most": 2.0, "runs": 2}
    assert lines[0]["settings"] == {"sequences": 3} and lines[0]["versions"]["torch"] == torch.__version__ and lines[0]["hardware"]["cpu"]
    assert common.table(rows).splitlines()[2].split("|")[2].strip() == "1.5 (1-2)"


def test_text_of_the_made_up_vocabulary_is_encoded_into_its_tokens(load: Any):
    common = load("common")
    tokenizer = common.make_tokenizer()
    ids = [*common.words(50), 3, *common.words(50, seed=1)]
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids
    assert tokenizer.decode([3]).endswith("\n\n") and not tokenizer.decode([80]).endswith("\n\n")


def test_padding_is_counted(load: Any):
    rows = load("prm").compare(sequences=3, prefix=70, mean=6, repeats=1)
    unneeded = {row["way"]: row["of them not needed"] for row in rows}
    assert unneeded["new steps"] == unneeded["whole traces"] == 0
    assert unneeded["transformers, padded new steps"] > 0.1
    assert {row["way"]: row["positions of the head"] for row in rows}["new steps"] == 3


def test_what_grows_with_the_vocabulary_is_seen(load: Any):
    scaling = load("scaling")
    model = torch.nn.Linear(4, 10)
    with scaling.VocabularyRows(model, 10) as rows:
        model(torch.zeros(3, 4))
        model.weight.t().contiguous()
    assert rows.most == 4  # a copy of the weights counts, a view of them does not
    with scaling.VocabularyRows(model, 10) as rows:
        model(torch.zeros(3, 4))
    assert rows.most == 3
