"""Two runs in one report: what is paired, what is refused, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.evaluation import bootstrap
from ppl_llm.evaluation.comparison import Comparison, across_temperatures
from ppl_llm.evaluation.diagnostics import Coverage, posterior_statements, reward_statements, selections
from ppl_llm.evaluation.intervals import proportion
from ppl_llm.evaluation.metrics import auroc, brier, false_positive_rate
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.risk import risk_coverage
from tests.helpers.runs import POOL, record, sample, write_run


def run(rights: dict[tuple[str, int], bool], **more: Any) -> Results:
    return Results([record(problem, "smc", 4, seed, right, **more) for (problem, seed), right in rights.items()], {"temperature": 1.0})


def test_differences_are_paired_by_problem_and_seed() -> None:
    """By hand: on the shared problems and seeds the second run is right in one cell more of four."""
    first = run({("p", 0): True, ("p", 1): False, ("q", 0): False, ("q", 1): True, ("only", 0): True})
    second = run({("q", 1): True, ("q", 0): False, ("p", 1): True, ("p", 0): True, ("p", 2): False})
    both = Comparison(first, second)
    assert both.first.problems == both.second.problems == ["p", "q"] and both.first.seeds == both.second.seeds == [0, 1]
    assert both.left_out == {"first": 1, "second": 0}
    found = both.difference("smc", 4)
    assert found.value == 0.25 and found == bootstrap([[0, 1], [0, 0]])  # the cells that do not differ add no width
    assert np.isnan(both.difference("smc", 8).value)


def test_a_run_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    results = Results.read(write_run(tmp_path / "run"))
    same = Comparison(results, results, ("run", "run"))
    assert same.names == ("run (1)", "run (2)") and same.changed == {}
    for method in same.methods:
        found = same.difference(method, 8)
        assert found.value == 0.0 and found.high == -found.low == pytest.approx(1 - 0.025 ** (1 / 12))
        ratio = same.second.scaling_ratio(method, method, same.first)
        assert ratio[:3] == pytest.approx((1.0, 1.0, 1.0)) and ratio.overlap == 1.0


def test_runs_that_cannot_be_compared_are_refused() -> None:
    first = run({("p", 0): True})
    with pytest.raises(ValueError, match=r"share no problems: 'first' has 'p' and 'second' has 'a', 'b', 'c' and 1 more; evaluate both"):
        Comparison(first, run({(name, 0): True for name in "abcd"}))
    with pytest.raises(ValueError, match="share no seeds: 'first' has 0 and 'second' has 7"):
        Comparison(first, run({("p", 7): True}))
    with pytest.raises(ValueError, match="problem 'p' has different right answers in the two runs, '1' and '2'"):
        Comparison(first, run({("p", 0): True}, gold="2"))


def test_the_command(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "one"), write_run(tmp_path / "two", skill=0.2)
    other = write_run(tmp_path / "other", problems=range(100, 103))
    done = CliRunner().invoke(app, ["report", str(first), str(second)])
    assert done.exit_code == 0, done.output
    assert '| prm | "skill 1.0" | "skill 0.2" |' in done.stdout and "| smc, difference | " in done.stdout
    assert (first / "comparison-with-two.html").exists() and not (first / "report.html").exists()
    refused = CliRunner().invoke(app, ["report", str(first), str(other)])
    assert refused.exit_code == 2 and "error: the runs share no problems: 'one' has 'p0', 'p1', 'p2' and 9 more" in refused.stderr
    missing = CliRunner().invoke(app, ["report", str(first), str(tmp_path / "nothing")])
    assert missing.exit_code == 2 and "there are no records in" in missing.stderr


def pooled(answers: str, temperature: float) -> Results:
    pool = [sample(answer, 1.0) for answer in answers]
    return Results([record("p", "importance", len(answers), 0, False, candidates=pool)], {"temperature": temperature})


def test_a_vote_across_two_temperatures() -> None:
    """Of four samples two are of each run: within them 1 has a share of 1 at the low temperature, 2 of 1/2 at the high one."""
    low, high = pooled("1122", 0.5), pooled("2322", 1.0)
    assert across_temperatures([low, high], 4).tolist() == [[1.0]]
    assert np.isnan(across_temperatures([low, high], 3)).all() and np.isnan(across_temperatures([low, high], 16)).all()
    assert across_temperatures([pooled("1322", 0.5), pooled("2222", 1.0)], 4).tolist() == [[0.0]]
    # Three runs, two samples each: a share of 1 for 1 against 1 + 1/2 for 2.
    assert across_temperatures([low, pooled("22", 0.7), high], 6).tolist() == [[0.0]]
    assert {c.temperature for c in high.samples["p", 0]} == {1.0}


def samples() -> Results:
    """POOL has the answers 2, 1, 2, 1 with log-odds 1, 3, 1.5, 0; the right one is 1."""
    return Results([record(p, "importance", 4, 0, False, candidates=POOL, answers={"1": 0.4, "2": 0.6}, answer="2") for p in "pq"])


def test_false_positives_by_hand() -> None:
    """Of one sample half are wrong, all are accepted but for a tie at 1/2; of all four the best is right."""
    one, two, four = selections(samples(), "last", [1, 2, 4])
    assert (one.wrong.value, one.accepted.value, one.false_positive.value) == (0.5, 1.0, 0.5)
    # Pairs by log-odds: {1, 3} {3, 1.5} {3, 0} pick the right one, {1, 1.5} {1, 0} {1.5, 0} a wrong one.
    assert two.wrong.value == pytest.approx(0.5) and two.false_positive.value == pytest.approx(0.5)
    assert (four.wrong.value, four.false_positive.value) == (0.0, 0.0)
    scores = [1.0, 3.0, 1.5, 0.0]
    assert one.false_positive.value == false_positive_rate(scores, [False, True, False, True], 0.0)


def test_statements_by_hand() -> None:
    (last, *_), labels = reward_statements(samples()), [False, True, False, True] * 2
    p = [1 / (1 + np.exp(-z)) for z in (1.0, 3.0, 1.5, 0.0)] * 2
    assert last.name == "last" and last.labels == labels and last.probabilities == pytest.approx(p)
    aurc = f"{risk_coverage(p, labels).area:.3f}"
    assert (
        last.row() == ["last", "8", f"{brier(p, labels):.3f}", last.row()[3], f"{auroc(p, labels):.3f}", aurc] and last.row()[4] == "0.500"
    )
    (stated,) = posterior_statements(samples())
    assert (stated.probabilities, stated.labels) == ([0.6, 0.6], [False, False]) and stated.row()[4] == ""
    assert samples().expected_accuracy("importance", 4) == proportion([0.4, 0.4])


def test_coverage_by_hand() -> None:
    found = Coverage.of(samples())
    assert found.ks == [1, 2, 4] and [value.value for value in found.passed] == pytest.approx([0.5, 5 / 6, 1.0])
    assert found.voted[2].value == 0.5  # two against two: a tie, whose order is random
    assert found.power_law is not None and found.misfit == pytest.approx(0.02703, abs=1e-5)  # through the first two points: 0.0468 off at 4
    hopeless = Results([record("p", "importance", 4, 0, False, candidates=[sample("2", 1.0)] * 4)])
    assert Coverage.of(hopeless).power_law is None


def test_scores_of_whole_solutions_are_votes_of_their_own(tmp_path: Path) -> None:
    results = Results.read(write_run(tmp_path / "run"))
    assert not np.isnan(results.offline("best-of-n, model", 8)).any() and [s.name for s in reward_statements(results)][-1] == "model"
    assert np.isnan(samples().offline("best-of-n, model", 4)).all() and np.isnan(samples().offline("rpc, sum", 4)).all()
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["temperature"] == 1.0
