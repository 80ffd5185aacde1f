"""Calibration recovers what made the scores dishonest, and makes them honest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import SMC, reasoning
from ppl_llm.evaluation.metrics import brier, calibration_error, reliability
from ppl_llm.reward.calibrated_reward import CalibratedReward, Calibration
from tests.ppl_llm.test_reasoning import LM, PRM


@settings(max_examples=10)
@given(temperature=st.floats(0.5, 4), bias=st.floats(-2, 2))
def test_fitting_recovers_the_map(temperature: float, bias: float) -> None:
    """Labels are the true probabilities: the fit is exact but for the faint prior."""
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    truth = Calibration(temperature, bias)
    fitted = Calibration.fit(z, truth(z).sigmoid())
    assert fitted.temperature == pytest.approx(temperature, rel=0.03) and fitted.bias == pytest.approx(bias, abs=0.03)


def test_overconfident_scores_become_honest() -> None:
    torch.manual_seed(0)
    honest = 1.5 * torch.randn(8000)
    labels = torch.bernoulli(honest.sigmoid())
    raw = 3.0 * honest - 1.0
    fitted = Calibration.fit(raw[:4000], labels[:4000])
    before, after = raw[4000:].sigmoid(), fitted(raw[4000:]).sigmoid()
    held_out = labels[4000:]
    assert calibration_error(reliability(before, held_out)) > 0.1 > 0.03 > calibration_error(reliability(after, held_out))
    assert brier(after, held_out) < brier(before, held_out)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)


def test_bad_data(tmp_path: Path) -> None:
    z = torch.tensor([1.0, 2.0, -1.0])
    for labels, message in (
        (torch.tensor([1.0, 0.0]), "as many labels as log-odds"),
        (torch.ones(3), "all labels are alike"),
        (torch.tensor([0.0, 0.0, 1.0]), "cannot be calibrated"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration.fit(z.repeat(20) if len(labels) == 3 else z, labels.repeat(20) if len(labels) == 3 else labels)
    with pytest.raises(ValueError, match="nan or infinite"):
        Calibration.fit(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        Calibration(0)
    (tmp_path / "c.json").write_text('{"temp": 1}')
    with pytest.raises(ValueError, match="does not hold a calibration"):
        Calibration.load(tmp_path / "c.json")


def test_saved_and_used_in_a_model(tmp_path: Path) -> None:
    Calibration(2.0, 0.5).save(tmp_path / "c.json")
    prm = CalibratedReward(PRM, Calibration.load(tmp_path / "c.json"))
    context = SMC(reasoning(LM, prm, max_steps=3, stop=";", max_tokens=2), 8).run("a").value
    torch.testing.assert_close(prm.step_log_odds(context), PRM.step_log_odds(context) / 2 + 0.5)
