"""The study's document says what the committed outcomes say."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import figures, outcomes
from benchmarks.study.__main__ import DOCUMENTS, FOLDER, SAVED, main
from benchmarks.study.document import TABLES, refreshed
from benchmarks.study.outcomes import Outcomes
from benchmarks.study.settings import MAP, MORE_MAP, MORE_SHIPPED, SETTINGS, STRONG, WEAK
from benchmarks.study.tables import joined, repeat, solution_auroc
from ppl_llm.evaluation.records import CONFIGURATION
from ppl_llm.methods import get_method

DOCUMENT, PATH = DOCUMENTS[0], FOLDER / SAVED


@pytest.fixture(scope="module")
def study() -> dict[str, Outcomes]:
    return outcomes.load(PATH)


def test_the_tables_of_the_document_are_those_of_the_outcomes(study: dict[str, Outcomes]) -> None:
    named = set(re.findall(r"<!-- table: ([\w-]+) -->", DOCUMENT.read_text(encoding="utf-8")))
    assert named == set(TABLES)
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert refreshed(text, study) == text


def test_a_single_wrong_answer_changes_the_document(study: dict[str, Outcomes]) -> None:
    strong = study["strong"]
    key = ("smc", 64, 0)
    row = strong.right[key]
    changed = replace(strong, right={**strong.right, key: ("0" if row[0] == "1" else "1") + row[1:]})
    text = DOCUMENT.read_text(encoding="utf-8")
    start, end = text.index("<!-- table: strong -->"), text.index("<!-- table: strong-differences -->")
    assert refreshed(text[start:end], {**study, "strong": changed}) != text[start:end]


def test_figures_in_the_text_are_quoted_from_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ["accuracy", "4", "64"],
        ["SMC, exact", "0.450 [0.4, 0.5]", "**0.690**"],
        ["`dvts`", "-0.2 [-0.3, -0.1]", "+0.021 [+0.0, +0.1]"],
    ]
    monkeypatch.setitem(TABLES, "toy", lambda study: rows)
    quoted = {
        "point: toy | SMC, exact | 4; 64": ".450, .690",
        "cell: toy | SMC, exact | 4": "0.450 [0.4, 0.5]",
        "point: toy | dvts | 4;64": "-.2, +.021",
        "cell: toy | dvts | 64": "+0.021 [+0.0, +0.1]",
    }
    for what, value in quoted.items():
        assert refreshed(f"a <!-- {what} -->old<!-- / --> b", {}) == f"a <!-- {what} -->{value}<!-- / --> b"
    for unknown in ("point: toy | SMC | 4", "point: toy | dvts | 5", "point: other | dvts | 4"):
        with pytest.raises(KeyError):
            refreshed(f"<!-- {unknown} -->1<!-- / -->", {})


def test_the_text_has_no_figure_of_its_own() -> None:
    """Accuracies and differences in the text come from tables, so that the tables cannot move on without it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for shown in (
        r"<!-- table: .*?<!-- end of table -->",
        r"<!-- (?:point|cell): .*?<!-- / -->",
        r"`[^`]*`",
        r"AUROC\s+\.\d\d(?:\s+and\s+\.\d\d)?",
    ):
        text = re.sub(shown, "", text, flags=re.DOTALL)
    assert re.findall(r"(?<![\w.])[+-]?0?\.\d{2,}", text) == []


def test_the_outcomes_are_small_and_complete(study: dict[str, Outcomes], tmp_path: Path) -> None:
    assert PATH.stat().st_size < 2_000_000
    names = [setting.name for setting in SETTINGS]
    assert list(study) == [name for name in names if name in study], "in the order of the settings"
    assert set(names) - set(study) <= {setting.name for setting in (*MORE_SHIPPED, *MORE_MAP)}, "later runs may be parts"
    for setting in (STRONG, WEAK):
        own = study[setting.name]
        assert len(own.problems) == setting.problems >= 300 and len(setting.seeds) >= 3
        for method in setting.methods:
            for budget in setting.budgets:
                if budget >= get_method(method).least:
                    assert all("-" not in own.right[method, budget, seed] for seed in setting.seeds)
    outcomes.save(study.values(), tmp_path / "again.gz")
    assert (tmp_path / "again.gz").read_bytes() == PATH.read_bytes()


def test_every_figure_is_there_and_shown() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in figures.FIGURES:
        assert (FOLDER / f"{name}.svg").stat().st_size < 200_000
        assert f"(study/{name}.svg)" in text and f"--figure {name}" in text


def test_a_figure_without_its_records_is_told_in_a_line(
    study: dict[str, Outcomes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes.save([study["weak"]], tmp_path / SAVED)
    for asked in ([], ["--figure", "winners"]):
        monkeypatch.setattr(sys, "argv", ["study", "--from", "outcomes", "--to", str(tmp_path), *asked])
        with pytest.raises(SystemExit) as ended:
            main()
        told = str(ended.value)
        assert "not all figures can be drawn: there are no outcomes of the setting 'strong'; --settings strong runs it" in told
        assert "\n" not in told and str(tmp_path / SAVED) in told


def record(problem: str, method: str, budget: int, seed: int, correct: bool, **more: Any) -> dict[str, Any]:
    cost = {"tokens_sampled": 10.0 * budget, "prm_calls": float(budget)}
    return {
        "problem": problem,
        "method": method,
        "budget": budget,
        "seed": seed,
        "correct": correct,
        "level": 1,
        "gold": "7",
        "cost": cost,
        **more,
    }


def test_outcomes_of_records_by_hand(tmp_path: Path) -> None:
    def sample(answer: str, *odds: float) -> dict[str, Any]:
        return {"answer": answer, "weight": 0.5, "log_odds": list(odds), "tokens": 3, "finished": True, "path": answer}

    part = tmp_path / "toy" / "00"
    part.mkdir(parents=True)
    pool = [sample("7", 3.0, -1.0), sample("8", 0.0, 0.5)]  # the product prefers the second, the mean and the first step the first
    records = [
        record("a", "importance", 1, 0, True),
        record("a", "importance", 2, 0, True, candidates=pool),
        record("a", "smc", 2, 0, False),
        record("b", "smc", 2, 0, True),
        record("b", "smc", 2, 1, True),
    ]
    (part / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (part / CONFIGURATION).write_text("{}")
    (part / "times.jsonl").write_text('{"cpu_seconds": 1.5, "seconds": 2.0}\n{"cpu_seconds": 0.5, "seconds": 1.0}\n')
    (part / "steps.jsonl").write_text("[[[true, false], [2.04, -1.0]]]\n")
    found = Outcomes.read(tmp_path / "toy")
    assert found is not None and Outcomes.read(tmp_path / "nothing") is None
    assert found.right["smc", 2, 0] == "01" and found.right["smc", 2, 1] == "-1"
    assert found.right["best-of-n:mean", 2, 0] == "1-" and found.right["best-of-n:min", 2, 0] == "0-"
    odds = [1 / (1 + math.exp(-z)) for z in (0.0, 0.5)]
    assert found.claims[2, 0][0] == pytest.approx(odds[0] * odds[1]) and math.isnan(found.claims[2, 0][1])
    assert found.spent == {"cpu_seconds": 2.0, "seconds": 3.0} and found.cost["smc", 2] == {"tokens_sampled": 20.0, "prm_calls": 2.0}
    outcomes.save([found], tmp_path / "toy.gz")
    back = outcomes.load(tmp_path / "toy.gz")["toy"]
    assert back.right == found.right and back.solutions == [[([True, False], [2.0, -1.0])]]
    both = joined({"toy": back}, [("toy", "smc", "filter")], ["a", "b"], [0, 1])
    assert both.methods == ["filter"] and both.accuracy("filter", 2).value == 0.5  # 0 of 1 and 2 of 2
    assert joined({"toy": back}, [("toy", "smc", "filter")], ["b"], [0]).accuracy("filter", 2).value == 1.0


def test_new_records_leave_other_settings_alone(study: dict[str, Outcomes], tmp_path: Path) -> None:
    part = tmp_path / "runs" / "none-more" / "00"
    part.mkdir(parents=True)
    (part / "records.jsonl").write_text(json.dumps(record("a", "power-smc", 4, 0, True)) + "\n")
    (part / CONFIGURATION).write_text("{}")
    saved = tmp_path / "all.gz"
    outcomes.save([study["strong"], study["choices"]], saved)
    outcomes.update(tmp_path / "runs", saved)
    found = outcomes.load(saved)
    assert list(found) == ["strong", "choices", "none-more"] and found["none-more"].right == {("power-smc", 4, 0): "1"}
    assert found["strong"].right == study["strong"].right
    outcomes.update(tmp_path / "runs", tmp_path / "new.gz")
    assert list(outcomes.load(tmp_path / "new.gz")) == ["none-more"]


def test_measures_of_reward_models_by_hand() -> None:
    repeated = [([True] * 3, [1.0 + e] * 3) for e in (-1.0, 0.0, 1.0)] + [([False, False], [-2.0, -2.0])]
    assert repeat(repeated) == pytest.approx(1.0)
    turning = [([True] * 4, [1.0 + e, 1.0 - e, 1.0 + e, 1.0 - e]) for e in (-1.0, 1.0)] + [([False], [-2.0])]
    assert repeat(turning) == pytest.approx(-1.0)
    solutions = [([True, True], [2.0, 2.0]), ([True, False], [3.0, -1.0]), ([False, True], [0.5, 3.0])]
    assert solution_auroc(solutions, "min") == 1.0 and solution_auroc(solutions, "last") == 0.5


def test_the_map_covers_the_errors_it_speaks_of() -> None:
    errors = [setting.prm for setting in MAP]
    assert len(set(errors)) == len(errors) >= 9
    for name in ("auroc", "repeat", "sharpness", "judges"):
        assert len({getattr(each, name) for each in errors}) > 1
