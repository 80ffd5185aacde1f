"""An evaluation from problems to records: what is done, what is not done twice, and what survives."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.evaluation.pool import Pool, Worker
from ppl_llm.evaluation.ray_pool import RayPool
from ppl_llm.evaluation.records import Key, read_records
from ppl_llm.evaluation.run import Progress, evaluate
from ppl_llm.evaluation.source import Models
from ppl_llm.evaluation.work import Unit, groups, plan
from ppl_llm.tasks import Problem, load_problems

MODELS = Models(max_steps=6, max_tokens=40)
PROBLEMS = [problem for problem in load_problems("demo", limit=60) if problem.metadata["level"] == 1][:4]


def comparable(folder: Path) -> dict[Key, Any]:
    """Records without what no two runs share."""
    return {Key.of(r): {name: value for name, value in r.items() if name not in ("seconds", "cost")} for r in read_records(folder)}


def run(folder: Path, **more: Any) -> Progress:
    arguments: dict[str, Any] = {"methods": ["importance", "best-of-n", "smc"], "budgets": [1, 4], "seeds": [0], "group_size": 2, **more}
    return evaluate(PROBLEMS, MODELS, folder, **arguments)


def test_records_of_every_method_and_only_what_is_missing(tmp_path: Path) -> None:
    assert len(PROBLEMS) == 4
    first = run(tmp_path, methods=["importance", "smc"])
    assert (first.total, first.done, first.skipped) == (6, 6, 0)
    records = list(read_records(tmp_path))
    assert len(records) == len({Key.of(r) for r in records}) == 4 * 2 * 2
    again = run(tmp_path, methods=["importance", "smc"])
    assert (again.done, again.skipped) == (0, 6)
    more = run(tmp_path, methods=["importance", "best-of-n", "smc"])
    assert more.skipped == 4 and len(list(read_records(tmp_path))) == 4 * 3 * 2
    by_key = {Key.of(r): r for r in read_records(tmp_path)}
    for problem in PROBLEMS:
        large, small = by_key[Key(problem.id, "importance", 4, 0)], by_key[Key(problem.id, "importance", 1, 0)]
        assert len(large["candidates"]) == 4 and "candidates" not in small
        assert small["answer"] == large["candidates"][0]["answer"]  # a small budget is a prefix of the large one
        assert all(-200 < c["log_prob"] < 0 for c in large["candidates"])
        assert large["cost"]["tokens_sampled"] > small["cost"]["tokens_sampled"] > 0
        filtered = by_key[Key(problem.id, "smc", 4, 0)]
        assert filtered["ess"] and filtered["log_evidence"] < 0 and abs(sum(filtered["answers"].values()) - 1) < 1e-4
        assert filtered["correct"] == (filtered["answer"] == problem.answer)


def test_scores_of_whole_solutions_are_recorded_on_demand(tmp_path: Path) -> None:
    models = replace(MODELS, answer_scores=True)
    evaluate(PROBLEMS[:2], models, tmp_path, methods=["importance", "smc"], budgets=[4], group_size=2)
    records = {Key.of(r): r for r in read_records(tmp_path)}
    for problem in PROBLEMS[:2]:
        samples = records[Key(problem.id, "importance", 4, 0)]["candidates"]
        one_step = [c for c in samples if len(c["log_odds"]) == 1]
        assert all(c["whole_log_odds"] == pytest.approx(c["log_odds"][0], abs=1e-4) for c in one_step)  # one step is the whole
        assert all(-50 < c["whole_log_odds"] < 50 for c in samples)
        assert any(abs(c["whole_log_odds"] - c["log_odds"][-1]) > 1e-3 for c in samples if len(c["log_odds"]) > 1)
        assert all("whole_log_odds" not in c for c in records[Key(problem.id, "smc", 4, 0)]["candidates"])
    with pytest.raises(ValueError, match="answer_scores needs a reward model in this process"):
        replace(models, prm="http://judge/v1").check()


def test_bad_arguments(tmp_path: Path) -> None:
    for arguments, message in (
        ({"methods": ["smcc"]}, "unknown method 'smcc'; did you mean 'smc'"),
        ({"budgets": [0]}, "budgets must be integers of at least 1, got 0"),
        ({"methods": ["particle-gibbs"]}, "needs a budget of at least 8"),
        ({"group_size": 0}, "group_size"),
        ({"workers": -1}, "workers"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, **arguments)
    with pytest.raises(ValueError, match="occurs more than once"):
        evaluate([PROBLEMS[0], PROBLEMS[0]], MODELS, tmp_path, methods=["smc"], budgets=[1])
    run(tmp_path, budgets=[1], methods=["smc"])
    with pytest.raises(ValueError, match=r"max_steps: 6 there, 7 now"):
        evaluate(PROBLEMS, Models(max_steps=7, max_tokens=40), tmp_path, methods=["smc"], budgets=[1], group_size=2)


def test_an_exception_in_one_batch_is_reported_and_the_rest_continues(tmp_path: Path) -> None:
    problems = [*PROBLEMS[:2], Problem("hopeless", "x" * 3000, "1", {"level": 1})]
    progress = evaluate(problems, MODELS, tmp_path, methods=["smc"], budgets=[2], group_size=2)
    assert [unit.group for unit in progress.quarantined] == [1] and "tokens" in next(iter(progress.quarantined.values()))
    assert len(list(read_records(tmp_path))) == 2


def test_workers_give_the_same_records_and_a_killed_one_loses_nothing(tmp_path: Path) -> None:
    run(tmp_path / "here", budgets=[2])
    units = list(plan(2, ["importance", "best-of-n", "smc"], [2], [0]))
    parts = groups(PROBLEMS, 2)
    with Pool(MODELS, parts, workers=2) as pool:
        outcomes = []
        for outcome in pool.run(units):
            if not outcomes:
                pool.workers[0].process.kill()
            outcomes.append(outcome)
    found = {Key.of(r): r for outcome in outcomes for r in outcome.records}
    expected = comparable(tmp_path / "here")
    assert {key: record["answer"] for key, record in found.items()} == {key: record["answer"] for key, record in expected.items()}


def test_a_unit_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second group's problem is no problem: every worker that gets it dies when it unpickles it."""
    parts = [PROBLEMS[:1], PROBLEMS[1:2]]
    real = Worker.give

    def deadly(self: Worker, unit: Unit) -> None:
        real(self, unit)
        if unit.group == 1:
            self.process.kill()

    monkeypatch.setattr(Worker, "give", deadly)
    with Pool(MODELS, parts, workers=1) as pool:
        outcomes = {outcome.unit.group: outcome for outcome in pool.run(list(plan(2, ["smc"], [1], [0])))}
    assert outcomes[0].error is None and "worker died" in str(outcomes[1].error)


def test_processes_of_a_launcher_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "one", budgets=[2])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(tmp_path / "two", budgets=[2]).total == 2
    assert {path.name for path in (tmp_path / "two").glob("*.jsonl")} == {"records.jsonl", "records-1.jsonl", "runs.jsonl"}
    assert comparable(tmp_path / "two") == comparable(tmp_path / "one")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="do not say which process of how many"):
        run(tmp_path / "two")


def test_ray_missing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-llm\[ray\]'"):
        run(tmp_path, ray="auto")


@pytest.mark.slow
def test_a_killed_actor_loses_nothing(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    run(tmp_path / "here", budgets=[2])
    units = list(plan(2, ["importance", "best-of-n", "smc"], [2], [0]))
    outcomes: list[Any] = []
    with RayPool(MODELS, groups(PROBLEMS, 2), "local", 2) as pool:
        for outcome in pool.run(units):
            if not outcomes:
                ray.kill(pool.actors[0])
            outcomes.append(outcome)
    found = {Key.of(r): r["answer"] for outcome in outcomes for r in outcome.records}
    assert found == {key: record["answer"] for key, record in comparable(tmp_path / "here").items()}
