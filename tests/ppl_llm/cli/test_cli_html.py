"""``solve --html``: the page, and what is said before a run that could not write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ppl_llm.inference.viewer.page as page_module
from ppl_llm.inference import SMC
from tests.inference.viewer.test_page import check_safe
from tests.ppl_llm.cli.test_cli import Prm, solve, tables, tabular_lm  # noqa: F401


def test_page(tables, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "run.html"
    result = solve("--particles", "6", "--html", str(path), "--json")
    assert result.exit_code == 0, result.output
    told, data = json.loads(result.stdout), check_safe(path.read_text(encoding="utf-8"))
    (shown,) = data["populations"]
    assert data["title"] == "ppl-llm solve, smc" and shown["problem"] == "ab"
    assert shown["answers"] == [[each["answer"], pytest.approx(each["probability"], rel=1e-4)] for each in told["answers"]]


@pytest.mark.parametrize("method", ["importance", "particle-gibbs", "tempered-smc", "beam-search", "self-consistency"])
def test_page_of_other_methods(tables, tmp_path: Path, method: str) -> None:  # noqa: F811
    result = solve("--method", method, "--html", str(tmp_path / "run.html"))
    assert result.exit_code == 0, result.output
    assert check_safe((tmp_path / "run.html").read_text(encoding="utf-8"))["populations"]


def test_page_of_an_interrupted_run(tables, tmp_path: Path) -> None:  # noqa: F811
    tables(tabular_lm(ends=False), Prm(fail_at=4))
    result = solve("--html", str(tmp_path / "run.html"))
    assert result.exit_code == 130
    data = check_safe((tmp_path / "run.html").read_text(encoding="utf-8"))
    assert len(data["populations"][0]["columns"]) == 3 and "stopped before" in data["note"]


@pytest.mark.parametrize("where", [".", "none/run.html", "file/run.html"])
def test_says_so_before_the_run(tables, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(SMC, "run", lambda *args, **kwargs: pytest.fail("the run began"))
    result = solve("--html", str(tmp_path / where))
    assert result.exit_code == 2
    assert "give a file in a folder that exists" in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_leaves_no_file_behind_where_nothing_ran(tables, tmp_path: Path) -> None:  # noqa: F811
    kept = tmp_path / "kept.html"
    kept.write_text("mine")
    for path in (kept, tmp_path / "new.html"):
        assert solve("--html", str(path), "--particles", "0").exit_code == 2
    assert kept.read_text() == "mine" and not (tmp_path / "new.html").exists()


def test_results_are_shown_though_there_is_too_much_to_draw(tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(page_module, "MOST_NODES", 1)
    result = solve("--html", str(tmp_path / "run.html"))
    assert result.exit_code == 2
    assert "Posterior over answers" in result.stdout and "too many to draw" in result.stderr


def test_the_page_is_written_though_nobody_reads_the_tables(tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def closed(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("ppl_llm.cli.report.Report.print", closed)
    assert solve("--html", str(tmp_path / "run.html")).exit_code != 0
    assert check_safe((tmp_path / "run.html").read_text(encoding="utf-8"))["populations"]
