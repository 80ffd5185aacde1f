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


def test_arms_measure_on_the_clock_with_their_threads(load: Any, monkeypatch: pytest.MonkeyPatch):
    """With clocks that tell themselves apart; afterwards all is as it was, also after an error."""
    common = load("common")
    monkeypatch.setattr(common.time, "perf_counter", iter(range(0, 1000, 10)).__next__)
    monkeypatch.setattr(common.time, "process_time", iter(range(1000)).__next__)
    before = torch.get_num_threads()

    def rows() -> list[dict[str, Any]]:
        return [{"seconds": seconds, "at": result} for seconds, result in common.in_turns({"it": torch.get_num_threads}, 2)["it"]]

    assert common.in_arms(common.arms(None), rows) == [{"seconds": 1, "at": 1}] * 2
    expected = [{"threads": number, "seconds": 10, "at": number} for number in (1, 2) for _ in range(2)]
    assert common.in_arms(common.arms([1, 2, 1]), rows) == expected
    with pytest.raises(ZeroDivisionError):
        common.in_arms(common.arms([before + 1]), lambda: [{"ratio": 1 / 0}])
    assert torch.get_num_threads() == before and common.timed(lambda: None)[0] == 1
    assert [common.clock(common.arms(threads)) for threads in (None, [1])] == ["process CPU time", "time on the clock"]


@pytest.mark.parametrize("script", ["engine", "smc"])
def test_a_script_reports_both_numbers_of_threads_in_one_run(
    load: Any, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module, common = load(script), load("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)  # threads that wait for a core take minutes
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    options = {"engine": ["--tokens", "2"], "smc": ["--ways"]}[script]
    monkeypatch.setattr("sys.argv", [script, "--quick", "--repeats", "1", "--threads", "1", "all", *options])
    module.main()
    lines = [json.loads(line) for line in (tmp_path / f"{script}.jsonl").read_text().splitlines()]
    assert {line["threads"] for line in lines} == {1, 2} <= set(asked) and lines[0]["settings"]["threads"] == [1, 2]
    assert "time on the clock" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_numbers_of_threads_that_there_are_not(load: Any, text: str):
    common = load("common")
    with pytest.raises(common.argparse.ArgumentTypeError, match=f"must be a number of threads from 1, or 'all', got '{text}'"):
        common.thread_count(text)


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
