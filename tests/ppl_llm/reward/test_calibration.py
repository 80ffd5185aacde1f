"""Calibration recovers the map that distorted the scores, and undoes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppl_llm import SMC, reasoning
from ppl_llm.evaluation.metrics import brier, calibration_error, reliability
from ppl_llm.reward.calibration import CalibratedReward, Calibration
from tests.ppl_llm.programs.test_reasoning import LM, PRM


@settings(max_examples=10)
@example(temperature=4.0, bias=2.0)  # every label is more likely right than not
@given(temperature=st.floats(0.5, 4), bias=st.floats(-2, 2))
def test_fitting_recovers_the_map(temperature: float, bias: float) -> None:
    """Labels are the true probabilities: the fit is exact but for the faint prior."""
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    truth = Calibration(temperature, bias)
    fitted = Calibration.fit(z, truth(z).sigmoid())
    assert fitted.temperature == pytest.approx(temperature, rel=0.03) and fitted.bias == pytest.approx(bias, abs=0.03)


def test_overconfident_scores_become_calibrated() -> None:
    torch.manual_seed(0)
    true_log_odds = 1.5 * torch.randn(8000)
    labels = torch.bernoulli(true_log_odds.sigmoid())
    raw = 3.0 * true_log_odds - 1.0
    fitted = Calibration.fit(raw[:4000], labels[:4000])
    before, after = raw[4000:].sigmoid(), fitted(raw[4000:]).sigmoid()
    held_out = labels[4000:]
    assert calibration_error(reliability(before, held_out)) > 0.1 > 0.03 > calibration_error(reliability(after, held_out))
    assert brier(after, held_out) < brier(before, held_out)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)


def test_bad_data() -> None:
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


def test_one_map_after_another() -> None:
    first, second, z = Calibration(2.0, 0.5), Calibration(0.4, -1.0), torch.linspace(-3, 3, 7)
    torch.testing.assert_close(second.after(first)(z), second(first(z)))
    assert not torch.allclose(first.after(second)(z), second(first(z)))


def test_very_sure_scores() -> None:
    """Where log-odds of 30 are wrong every tenth time, the fit sees how wrong: a probability that is one in float32 is not one here."""
    z = torch.tensor([30.0, -30.0]).repeat(500)
    wrong = torch.arange(1000) % 20 < 2
    fitted = Calibration.fit(z, (z > 0).double() * ~wrong + (z < 0).double() * wrong)
    assert fitted(torch.tensor(30.0)).sigmoid() == pytest.approx(0.9, abs=0.01)


def test_used_in_a_model() -> None:
    prm = CalibratedReward(PRM, Calibration(2.0, 0.5))
    context = SMC(reasoning(LM, prm, max_steps=3, stop=";", max_tokens=2), 8).run("a").value
    torch.testing.assert_close(prm.step_log_odds(context), PRM.step_log_odds(context) / 2 + 0.5)
