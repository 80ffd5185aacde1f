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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """UTF-8 with and without a byte order mark, UTF-16 with one (Python's ``utf-16``) and in either order of bytes."""
    rows = [{"problem": "é\u2028½?", "answer": "½"}, {"problem": "2+2?", "answer": "4"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "rows.jsonl").write_bytes(("\ufeff" + text if encoding.endswith("e") else text).encode(encoding))
    assert [(p.text, p.answer) for p in load_problems(tmp_path / "rows.jsonl")] == [("é\u2028½?", "½"), ("2+2?", "4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "café", "answer": "1"}'.encode("latin-1"), r"line 2: not UTF-8 \(byte 0xe9 at 17\); convert the file"),
        ('{"problem": "x"}'.encode("utf-16-le"), "line 2: not JSON"),
        (b'{"problem": "x", "answer": ' + b"1" * 5000 + b"}", "line 2: .*digits"),
        (b'{"problem": "x", "answer": ' + b"[" * 100_000, "line 2: .*recursion"),
        (b'{"problem": "x", "answer": ["1", "2"]}', r"line 2: the answer must be one text or number, got \['1', '2'\]"),
        (b'{"problem": "x", "answer": {"value": 2}}', r"line 2: the answer must be one text or number, got \{'value': 2\}"),
        (b'{"problem": "x", "answer": []}', r"line 2: the answer must be one text or number, got \[\]"),
        (b'{"problem": "x", "answer": NaN}', "line 2: the answer nan is not a number"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"problem": "fine", "answer": "1"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, " + message):
        list(load_problems(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ('{"answer": ["2"]}', "2"),
        ('{"answer": [[2.0]]}', "2"),
        ('{"answer": null, "final_answer": "5"}', "5"),
        ('{"answer": null, "final_answer": null}', None),
        ('{"final_answer": "5"}', "5"),
        ('{"answer": 0.00001}', "0.00001"),
        ('{"answer": 1e-7}', "0.0000001"),
        ('{"answer": 1.5e22}', "15000000000000000000000"),
        ('{"answer": -0.25}', "-0.25"),
        ('{"answer": 27.0}', "27"),
        ('{"answer": 100}', "100"),
        ('{"answer": true}', "True"),
    ],
)
def test_right_answers(tmp_path: Path, row: str, answer: str | None) -> None:
    path = write(tmp_path / "rows.jsonl", row.replace("{", '{"problem": "x", ', 1))
    (problem,) = load_problems(path)
    assert problem.answer == answer
    assert answer is None or problem.is_right(answer)


def test_a_file_in_utf_16_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"problem": "x"}\n{"problem": "y"}'.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not UTF-16 \(truncated data\)"):
        list(load_problems(tmp_path / "rows.jsonl"))
