"""Calibration on whole solutions: the distortion of the scores is recovered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.demo import PRM_DIR
from ppl_llm.evaluation import RecordStore
from ppl_llm.evaluation.calibrate import calibrate, half_of, saved
from ppl_llm.evaluation.results import Results
from ppl_llm.reward.calibration import Calibration, SavedCalibration, load_calibration
from tests.helpers.runs import record


def solutions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps whose calibrated log-odds were stretched by 2.5 and raised by 1; a solution is right if all of its steps are."""
    generator = torch.Generator().manual_seed(seed)
    calibrated = 1.5 + 1.5 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    real = torch.arange(4) < torch.randint(1, 5, (count, 1), generator=generator)
    right = torch.bernoulli(calibrated.sigmoid(), generator=generator).bool() | ~real
    return 2.5 * (calibrated + 0.4), real, right.all(-1).double()


def test_solutions_recover_the_map() -> None:
    """Standard errors of the estimates are about 0.05 at 20 000 solutions. A fit that takes every step of a wrong solution for wrong is
    rejected.
    """
    z, real, right = solutions(20_000, 0)
    fitted = Calibration.fit(z, right, real)
    naive = Calibration.fit(z[real], right[:, None].expand_as(real)[real])
    assert abs(naive.bias + 0.4) > 0.5
    assert fitted.temperature == pytest.approx(2.5, rel=0.1) and fitted.bias == pytest.approx(-0.4, abs=0.12)


def records(gold: bool) -> list[dict[str, Any]]:
    z, real, right = solutions(2000, 1)
    rows = []
    for problem in range(100):
        pool = []
        for i in range(20 * problem, 20 * problem + 20):
            answer = "1" if right[i] else str(2 + i % 7)
            pool.append(
                {"answer": answer, "weight": 1.0, "log_odds": z[i][real[i]].tolist(), "tokens": 1, "finished": True, "path": str(i)}
            )
        rows.append(record(f"p{problem}", "importance", 20, 0, True, candidates=pool, gold="1" if gold else None))
    return rows


@pytest.mark.parametrize("labels", ["gold", "agreement"])
def test_held_out_problems_show_the_gain(labels: str) -> None:
    fit = calibrate(Results(records(gold=labels == "gold")), labels)
    assert fit.error[0] > 0.15 and fit.error[1] < 0.6 * fit.error[0] and fit.brier[1] < fit.brier[0]
    assert fit.num_solutions == 1000 and sum(b.size for b in fit.after) == 1000


def test_both_halves_have_every_level() -> None:
    """In the demo six levels take turns: halves by turns would have three each."""
    problems = [f"demo-{i}" for i in range(60)]
    half = half_of(problems)
    assert sum(half.values()) == 30
    for level in range(6):
        assert {half[problem] for problem in problems[level::6]} == {0, 1}
    by_turns = {problem: i % 2 for i, problem in enumerate(problems)}
    assert {by_turns[problem] for problem in problems[::6]} == {0}


def test_a_run_that_was_calibrated_before() -> None:
    """The file holds the map from the raw log-odds, whatever was applied to those of the records."""
    fit = calibrate(Results(records(gold=True)))
    raw = saved(fit, Results(records(gold=True), {"prm": "demo"}), "run", "gold").calibration
    twice = saved(fit, Results(records(gold=True), {"prm": "demo", "calibration": [2.0, 0.5]}), "run", "gold").calibration
    z = torch.linspace(-3, 3, 5)
    torch.testing.assert_close(raw(z), fit.calibration(z))
    torch.testing.assert_close(twice(z), fit.calibration(z / 2 + 0.5))
    with pytest.raises(ValueError, match="does not say which reward model it used; name it with --prm"):
        saved(fit, Results(records(gold=True)), "run", "gold")


def test_command_and_mistakes(tmp_path: Path) -> None:
    with RecordStore(tmp_path / "run", {"prm": "demo"}) as store:
        store.append(records(gold=True))
    written = tmp_path / "c.json"
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "run"), "--out", str(written)])
    assert done.exit_code == 0 and "calibration error goes from" in done.stdout and "how often right" in done.stdout
    kept = SavedCalibration.load(written)
    assert kept.prm == "demo" and kept.identity.startswith("files ") and kept.fitted_on["solutions"] == 1000
    assert kept.fitted_on["run"] == "run" and kept.fitted_on["labels"] == "gold" and str(tmp_path) not in written.read_text()
    before, after = kept.held_out["calibration_error"]
    assert after < before and sum(size for *_, size in kept.held_out["reliability"]["after"]) == kept.held_out["solutions"] == 1000
    assert load_calibration(written, "demo") == kept.calibration
    model = tmp_path / "model"
    shutil.copytree(PRM_DIR, model)
    beside = CliRunner().invoke(app, ["calibrate", str(tmp_path / "run"), "--prm", str(model)])
    assert beside.exit_code == 0 and load_calibration(model / "ppl_llm_calibration.json", model) == kept.calibration
    for arguments, message in (
        (["--labels", "golden"], "gold, agreement, got 'golden'"),
        ([], "the reward model 'demo' is no directory of yours; say where to write its calibration with --out"),
        (["--prm", str(tmp_path / "gone")], "no model directory"),
    ):
        assert message in CliRunner().invoke(app, ["calibrate", str(tmp_path / "run"), *arguments]).stderr
    with pytest.raises(ValueError, match="at least two problems"):
        calibrate(Results([record("p", "smc", 4, 0, True)]))
    with pytest.raises(ValueError, match="all labels are alike"):
        Calibration.fit(torch.ones(3, 1), torch.ones(3))
