"""Calibrations in files: whose they are, and where they are applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ppl_llm import SMC, TransformersLM, TransformersPRM, load_problems, reasoning
from ppl_llm.cli import app
from ppl_llm.context_cache import label_of
from ppl_llm.demo import PRM_DIR, example
from ppl_llm.evaluation.run import evaluate
from ppl_llm.evaluation.source import Models
from ppl_llm.reward.calibration import Calibration, SavedCalibration, identity_of, load_calibration

HALF = Calibration(2.0, -0.5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    SavedCalibration(HALF, "demo", identity_of("demo"), {"labels": "gold"}).save(tmp_path / "c.json")
    return tmp_path / "c.json"


def test_kept(file: Path) -> None:
    kept = SavedCalibration.load(file)
    assert kept == SavedCalibration(HALF, "demo", identity_of("demo"), {"labels": "gold"}, {})
    assert json.loads(file.read_text())["temperature"] == 2.0


def test_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    copied, trained = tmp_path / "copied", tmp_path / "trained"
    for directory in (copied, trained):
        shutil.copytree(PRM_DIR, directory)
    weights = trained / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # the last weights
    weights.write_bytes(content)
    assert identity_of("demo") == identity_of(PRM_DIR) == identity_of(copied) != identity_of(trained)
    assert len({identity_of("demo"), identity_of("demo-weak"), identity_of(trained)}) == 3
    assert identity_of("http://host:8001/v1") == "address http://host:8001/v1"
    assert identity_of("someone/not-here") == "name someone/not-here"
    with pytest.raises(OSError, match="no model directory"):
        identity_of(tmp_path / "gone")


def test_that_of_another_model_is_refused(file: Path, tmp_path: Path) -> None:
    assert load_calibration(file, "demo") == HALF and load_calibration(file, PRM_DIR) == HALF
    with pytest.raises(ValueError, match=r"was fitted for the reward model 'demo' \(files \w+\), and this is 'demo-weak' \(files \w+\)"):
        load_calibration(file, "demo-weak")
    with pytest.raises(ValueError, match="this is 'http://host:8001/v1'"):
        load_calibration(file, "http://host:8001/v1")
    SavedCalibration(HALF, "someone/prm", "name someone/prm").save(tmp_path / "hub.json")
    assert load_calibration(tmp_path / "hub.json", "someone/prm") == HALF
    with pytest.raises(ValueError, match="this is 'someone/other'"):
        load_calibration(tmp_path / "hub.json", "someone/other")
    for content in ("{", "[]", '{"temperature": 1}', '{"temperature": 1, "bias": 0}', '{"temperature": 1, "bias": 0, "prm": "a", "x": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=r"bad\.json' does not hold a calibration"):
            SavedCalibration.load(tmp_path / "bad.json")


def test_applied_by_the_reward_model(file: Path, tmp_path: Path) -> None:
    lm, raw = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    context = SMC(reasoning(lm, raw, max_steps=4, max_tokens=40), 4).run(example(1).text).value
    beside = tmp_path / "model"
    shutil.copytree(PRM_DIR, beside)
    with pytest.raises(FileNotFoundError, match=r"there is no calibration .*ppl_llm_calibration\.json"):
        TransformersPRM.from_pretrained(beside, calibration=True)
    shutil.copy(file, beside / "ppl_llm_calibration.json")
    for given in (TransformersPRM.from_pretrained("demo", calibration=file), TransformersPRM.from_pretrained(beside, calibration=True)):
        for scores, expected in (
            (given.step_log_odds(context), raw.step_log_odds(context) / 2 - 0.5),
            (given.whole_log_odds(context), raw.whole_log_odds(context) / 2 - 0.5),
        ):
            torch.testing.assert_close(scores, expected)
            assert scores.dtype == torch.float32
    # Cache entries of a context are raw: reward models with other maps share them, and none is applied twice.
    torch.testing.assert_close(raw.step_log_odds(context) / 2 - 0.5, given.step_log_odds(context))
    assert label_of(given) != label_of(raw)
    assert TransformersPRM.from_pretrained("demo", calibration=None).calibration is None
    with pytest.raises(ValueError, match="was fitted for the reward model 'demo'"):
        TransformersPRM.from_pretrained("demo-weak", calibration=file)


def test_an_evaluation_with_a_calibration(file: Path, tmp_path: Path) -> None:
    """The recorded log-odds are the calibrated ones, the same samples otherwise; the folder knows."""
    problems = list(load_problems("demo", limit=2))
    arguments: dict[str, Any] = {"methods": ["importance"], "budgets": [2]}
    plain, calibrated = Models(max_steps=4, max_tokens=40), Models(max_steps=4, max_tokens=40, calibration=(2.0, -0.5))
    evaluate(problems, plain, tmp_path / "plain", **arguments)
    evaluate(problems, calibrated, tmp_path / "calibrated", **arguments)
    raw, mapped = (
        [c for line in (tmp_path / name / "records.jsonl").read_text().splitlines() for c in json.loads(line)["candidates"]]
        for name in ("plain", "calibrated")
    )
    assert [c["path"] for c in raw] == [c["path"] for c in mapped]
    for before, after in zip(raw, mapped, strict=True):
        assert after["log_odds"] == pytest.approx([z / 2 - 0.5 for z in before["log_odds"]], rel=1e-5, abs=1e-5)
    with pytest.raises(ValueError, match=r"calibration: None there, \[2\.0, -0\.5\] now"):
        evaluate(problems, calibrated, tmp_path / "plain", **arguments)


def test_on_the_command_line(file: Path, tmp_path: Path) -> None:
    run = CliRunner()
    solve = ["solve", example(1).text, "--particles", "2", "--json", "--max-steps", "4"]
    plain, calibrated = (json.loads(run.invoke(app, [*solve, *more]).stdout) for more in ([], ["--calibration", str(file)]))
    assert calibrated["settings"]["calibration"] == {"temperature": 2.0, "bias": -0.5} and "calibration" not in plain["settings"]
    assert calibrated["log_evidence"] != plain["log_evidence"]
    for command in (solve, ["evaluate", "demo", "--out", str(tmp_path / "run")]):
        refused = run.invoke(app, [*command, "--prm", "demo-weak", "--calibration", str(file)])
        assert refused.exit_code == 2 and "was fitted for the reward model 'demo'" in refused.stderr
    assert not (tmp_path / "run").exists()
