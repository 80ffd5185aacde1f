"""Tables of a run in which problems were given up say over how many of them they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.evaluation import RecordStore, Results
from ppl_llm.evaluation.comparison import Comparison
from ppl_llm.evaluation.metrics import out_of
from ppl_llm.evaluation.records import CONFIGURATION, RECORDS
from ppl_llm.evaluation.report import accuracy_sections, diagnostic_sections, size, tables
from tests.helpers.runs import record, results, write_run


def without(folder: Path, lost: Any) -> Path:
    """The run, less the records that ``lost`` names."""
    path = folder / RECORDS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if not lost(row)))
    return folder


def run(folder: Path, **settings: Any) -> Path:
    return write_run(folder, num_problems=12, **settings)


def test_nothing_is_said_of_a_complete_run(tmp_path: Path) -> None:
    found = Results.read(run(tmp_path / "run"))
    assert " of 12 " not in str(tables(found)) and size(found).startswith("12 problems, ")


def test_every_table_says_how_many_problems_it_is_over(tmp_path: Path) -> None:
    """Two problems of twelve were given up by every method, and are in no record."""
    found = Results.read(without(run(tmp_path / "run"), lambda row: row["problem"] in ("p3", "p7")))
    assert found.num_problems == 12 and len(found.problems) == 10 and size(found).startswith("10 of 12 problems, ")
    for title, rows in tables(found):
        assert "10 of 12 problems" in str(rows), title
    blocks = [table for section in (*accuracy_sections(found), *diagnostic_sections(found)) for table in section.tables]
    assert len(blocks) >= 9
    for table in blocks:
        # Which level a problem without any record has is not known.
        assert "10 of 12 problems" in str(table.rows) or "by level" in table.caption, table.caption


def test_a_method_that_gave_up_says_so_in_its_cells(tmp_path: Path) -> None:
    """The filter lost four problems at 8 completions, and one of two seeds of a fifth at 4."""

    def lost(row: dict[str, Any]) -> bool:
        gone = row["budget"] == 8 and row["problem"] in ("p0", "p1", "p2", "p3")
        return bool(row["method"] == "smc" and (gone or (row["budget"] == 4 and row["problem"] == "p5" and row["seed"] == 1)))

    found = dict(tables(Results.read(without(run(tmp_path / "run"), lost))))
    accuracy, difference, ratio, cost = (
        next(rows for title, rows in found.items() if title.startswith(start))
        for start in ("Accuracy against", "Paired difference", "How many times", "Cost")
    )
    cells = next(row for row in accuracy if row[0] == "smc")
    assert [cell.partition("] ")[2] for cell in cells[1:]] == ["", "", "(23 of 24 answers)", "(8 of 12 problems)"]
    assert next(row for row in difference if row[0] == "smc")[-1].endswith("(8 of 12 problems)")
    assert "smc (8 of 12 problems)" in ratio[0] and "smc (8 of 12 problems)" in [row[0] for row in cost]
    assert all(" of 12 " not in str(row) for row in accuracy if row[0] != "smc")


def test_a_comparison_counts_the_problems_that_both_have(tmp_path: Path) -> None:
    first = without(run(tmp_path / "one"), lambda row: row["problem"] == "p0")
    second = without(run(tmp_path / "two", skill=0.2), lambda row: row["method"] == "smc" and row["problem"] in ("p1", "p2"))
    both = Comparison.read(first, second)
    assert both.first.num_problems == 11
    rows = {row[0]: row[1:] for row in both.difference_rows()}
    assert all(cell.endswith("(9 of 11 problems)") for name in ("smc, two", "smc, difference") for cell in rows[name])
    assert " of " not in str(rows["smc, one"]) and both.ratio_rows()[4][0] == "smc (two: 9 of 11 problems)"


def test_seeds_are_averaged_within_problems() -> None:
    """One problem has three seeds, all right; the other one, wrong: the accuracy is 1/2, not 3/4."""
    found = Results([*(record("p", "smc", 4, seed, True) for seed in range(3)), record("q", "smc", 4, 0, False)])
    assert found.accuracy("smc", 4).value == 0.5 and found.mean_cost("smc", 4) == 40.0
    assert found.evaluated(("smc", 4)) == "4 of 6 answers"
    assert math.isnan(found.accuracy("smc", 8).value) and found.evaluated(("smc", 8)) == "0 of 2 problems"


def test_counts_by_hand() -> None:
    cells = [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    assert out_of(cells, 2) == "" and out_of(cells, 3) == "2 of 3 problems" and out_of(cells[:3], 2) == "3 of 4 answers"
    assert results().evaluated(("smc", 8), ("importance", 4)) == ""


def test_the_number_of_problems_is_in_the_settings_of_a_run(tmp_path: Path) -> None:
    with RecordStore(tmp_path, {"num_problems": 5}) as store:
        store.append([record("p", "smc", 4, 0, True)])
    assert json.loads((tmp_path / CONFIGURATION).read_text())["num_problems"] == 5
    assert Results.read(tmp_path).evaluated(("smc", 4)) == "1 of 5 problems"
    with pytest.raises(ValueError, match="there are no records yet"):
        Results([], {"num_problems": 5})
