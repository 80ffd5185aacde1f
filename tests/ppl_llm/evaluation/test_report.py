"""The commands, and a report that opens without a network."""

from __future__ import annotations

import json
import operator
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.evaluation import Candidate, RecordStore
from ppl_llm.evaluation.report import write
from ppl_llm.evaluation.work import pooled
from tests.helpers.runs import POOL, record

ARGUMENTS = [
    "evaluate",
    "demo",
    "--limit",
    "2",
    "--methods",
    "importance,smc",
    "--budgets",
    "1,2",
    "--max-steps",
    "6",
    "--max-tokens",
    "40",
]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_evaluate_report_recommend(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    done = invoke(*ARGUMENTS, "--out", folder)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["max_steps"] == 6
    assert re.search(r"\| smc \| \d\.\d{3} \[", done.stdout) and "Votes recomputed" in done.stdout
    reported = invoke("report", folder)
    assert reported.exit_code == 0 and "report.html" in reported.stdout
    assert {p.suffix for p in Path(folder).glob("accuracy-against-*")} == {".png", ".svg"}
    chosen = invoke("recommend", folder, "--tokens", "100000")
    assert chosen.exit_code == 0 and chosen.stdout.count("\n") >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ARGUMENTS[:5], "smcc", "--out", "{}"], "unknown method 'smcc'; did you mean 'smc'"),
        ([*ARGUMENTS, "--out", "{}", "--budgets", "1,two"], "--budgets must be whole numbers"),
        ([*ARGUMENTS, "--out", "{}", "--seeds", "0"], "--seeds must be at least 1"),
        ([*ARGUMENTS, "--out", "{}", "--preset", "exakt"], "did you mean 'exact'"),
        ([*ARGUMENTS, "--out", "{}", "--equivalence", "maths"], "did you mean 'math'"),
        (["evaluate", "missing.jsonl", "--out", "{}"], "no file 'missing.jsonl'"),
        (["report", "{}"], "there are no records in"),
        (["recommend", "{}", "--tokens", "5"], "there are no records in"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = invoke(*(a.format(tmp_path / "run") for a in arguments))
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output and done.stderr.strip().count("\n") == 0


class Links(HTMLParser):
    """Every reference out of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value and not value.startswith("#")]


def test_the_page_is_self_contained_and_escapes_what_it_shows(tmp_path: Path) -> None:
    settings = {"lm": "<script>alert(1)</script>"}
    with RecordStore(tmp_path, settings) as store:
        rows = [record(f"p{i}", "importance", 4, 0, bool(i), candidates=POOL, answers={"1": 1.0}, answer="1") for i in range(2)]
        rows += [record(f"p{i}", "<b>mine</b>", 4, 0, True, answers={"1": 1.0}, answer="1") for i in range(2)]
        store.append(rows)
    page = write(tmp_path).read_text()
    links = Links()
    links.feed(page)
    assert links.found == ["data:,"] and "script" not in links.tags and "b" not in links.tags
    assert "&lt;script&gt;" in page and page.count("<svg") >= 3


def test_equal_answers_are_written_alike_and_like_the_gold_one() -> None:
    def same(a: Any, b: Any) -> bool:
        return a is not None and b is not None and float(a) == float(b)

    pool = [Candidate("0.50"), Candidate("0.5"), Candidate("2"), Candidate("2.0"), Candidate(None)]
    assert [c.answer for c in pooled(pool, ".5", same)] == [".5", ".5", "2", "2", None]
    assert [c.answer for c in pooled(pool, None, same)] == ["0.5", "0.5", "2", "2", None]
    assert pooled(pool, ".5", operator.eq) is pool
