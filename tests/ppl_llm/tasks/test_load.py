"""Problems from JSONL files, rows, Hugging Face data sets and the demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ppl_llm import Problem, extract_answer, load_problems
from ppl_llm.demo import looks_like_demo
from ppl_llm.demo.problems import split_of


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"unique_id": "x/1", "problem": "1+1?", "answer": 2.0, "level": 3, "subject": "sums"},
        "",
        {"id": 7, "question": "é?", "final_answer": "½", "unique_id": "x/2"},
        {"text": "open"},
    )
    assert list(load_problems(path)) == [
        Problem("x/1", "1+1?", "2", {"level": 3, "subject": "sums"}),
        Problem("7", "é?", "½", {"unique_id": "x/2"}),
        Problem("3", "open", None, {}),
    ]
    assert [problem.id for problem in load_problems(str(path), limit=2)] == ["x/1", "7"]


def test_field_mapping(tmp_path: Path) -> None:
    row = {"q": "How many?", "a": "6 * 7 = 42\n#### 42", "n": 5, "hard": "very"}
    mapped = load_problems(
        write(tmp_path / "b.jsonl", row), problem="q", answer=lambda row: extract_answer(row["a"]), id="n", level=lambda row: row["hard"]
    )
    assert list(mapped) == [Problem("5", "How many?", "42", {"a": row["a"], "hard": "very", "level": "very"})]
    assert [problem.text for problem in load_problems([row], problem=lambda row: row["q"] + " Show it.")] == ["How many? Show it."]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('{"problem": "x"', {}, r"c\.jsonl, line 3: not JSON \(Expecting ',' delimiter at column \d+\)"),
        ("[1, 2]", {}, "line 3: expected an object with named fields, got list"),
        ({"prompt": "x"}, {}, "line 3: no field 'problem' or 'question' or 'text' for the problem; it has 'prompt'"),
        ({"problem": "x"}, {"answer": "gold"}, "line 1: no field 'gold' for the answer; it has 'id', 'problem'"),
        ({"problem": "  ", "id": 2}, {}, "line 3: the problem must be a text that is not empty, got '  '"),
        ({"problem": 5, "id": 2}, {}, "line 3: the problem must be a text that is not empty, got 5"),
        ({"problem": "x", "id": "one"}, {}, r"line 3: the id 'one' is already that of .*c\.jsonl, line 1"),
    ],
)
def test_bad_lines(tmp_path: Path, line: Any, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "c.jsonl", {"id": "one", "problem": "fine"}, "", line)
    with pytest.raises(ValueError, match=message):
        list(load_problems(path, **options))


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    problems = load_problems(write(tmp_path / "d.jsonl", {"problem": "fine"}, "broken"))
    assert next(problems).text == "fine"
    with pytest.raises(ValueError, match="line 2: not JSON"):
        next(problems)
    assert len(list(load_problems(tmp_path / "d.jsonl", limit=1))) == 1


def test_demo() -> None:
    problems = list(load_problems("demo", limit=12))
    assert len(problems) == len({problem.id for problem in problems}) == 12
    assert [problem.metadata["level"] for problem in problems] == [1, 2, 3, 4, 5, 6] * 2
    for problem in problems:
        assert looks_like_demo(problem.text) and split_of(problem.text) == "held_out"
        assert extract_answer(problem.metadata["solution"]) == problem.answer
    assert problems == list(load_problems("demo", limit=12))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/file", Path("missing")])
def test_a_missing_file(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*; give a JSONL file"):
        load_problems(name)


def test_limits() -> None:
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="limit must be None or an integer of at least 1"):
            load_problems("demo", limit=wrong)  # type: ignore[arg-type]


def test_hugging_face_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.tasks.row_task.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'"ppl-llm\[datasets\]"'):
        load_problems("openai/gsm8k")
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        return [{"question": "6 * 7?", "answer": "so\n#### 42"}, {"question": "", "answer": "0"}]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("ppl_llm.tasks.row_task.find_spec", lambda name: SimpleNamespace())
    rows = load_problems("openai/gsm8k", config="main", split="train", answer=lambda row: extract_answer(row["answer"]))
    assert next(rows) == Problem("1", "6 * 7?", "42", {"answer": "so\n#### 42"})
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]
    with pytest.raises(ValueError, match=r"openai/gsm8k \(train\), row 2: the problem must be a text"):
        next(rows)


@pytest.mark.filterwarnings("ignore")
def test_a_real_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` itself, where it is installed: by its name, a directory here, and loaded by the caller."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: datasets)")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    rows = [{"problem": "1+1?", "answer": "2", "level": 1}, {"problem": "2+2?", "answer": "4", "level": 2}]
    write(tmp_path / "org/name/test.jsonl", *rows)
    expected = [Problem("1", "1+1?", "2", {"level": 1}), Problem("2", "2+2?", "4", {"level": 2})]
    assert list(load_problems("org/name")) == expected
    assert list(load_problems(datasets.load_dataset("org/name", split="test"))) == expected
    with pytest.raises(ValueError, match=r"org/name \(test\), row 1: no field 'gold' for the answer"):
        list(load_problems("org/name", answer="gold"))
