"""Searches, look-ahead and proposals on real networks: the same caches serve draws that are kept and draws that are thrown away."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import DVTS, SMC, BeamSearch, BestOfN, LookAhead, StepProposal, TransformersLM, TransformersPRM, reasoning
from ppl_llm.demo.problems import held_out


@cache
def model() -> Any:
    return reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"), "twisted", max_steps=4, max_tokens=40)


PROBLEMS = [problem.text for problem in held_out(2, 1)]


@pytest.mark.parametrize(
    "make",
    [
        lambda m: BeamSearch(m, 2, 2, max_plate_nesting=1, audit=True),
        lambda m: DVTS(m, 2, 2, max_plate_nesting=1, audit=True),
        lambda m: SMC(m, 4, ess_threshold=1.0, selection=LookAhead.of(m), max_plate_nesting=1, audit=True),
        lambda m: SMC(m, 4, proposals=StepProposal(temperature=1.2), max_plate_nesting=1, audit=True),
        lambda m: SMC(m, 4, proposals=StepProposal(prompt=lambda text: text + " "), max_plate_nesting=1, audit=True),
    ],
    ids=["beam search", "DVTS", "look-ahead", "temperature", "prompt"],
)
def test_audit_is_zero(make: Any) -> None:
    pyro.set_rng_seed(0)
    posterior = make(model()).run(PROBLEMS)
    assert posterior.audit is not None and posterior.audit.error == 0.0
    assert len(model().choose(posterior)) == 2


def test_scores_are_those_of_the_reward_model() -> None:
    pyro.set_rng_seed(1)
    for search in (BeamSearch(model(), 2, 2, max_plate_nesting=1), BestOfN(model(), 4, max_plate_nesting=1)):
        posterior = search.run(PROBLEMS)
        context = posterior.value
        z = torch.where(context.reasons > 0, model().prm.step_log_odds(context), torch.inf)
        assert posterior.scores is not None
        torch.testing.assert_close(posterior.scores, z.amin(-1).double().sigmoid().log(), atol=1e-3, rtol=1e-3)
