"""The estimators of SMC, exactly: all randomness of the real sweep is enumerated (tests/helpers/exact.py), tolerance 1e-10."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.inference import RESAMPLERS, SMC, AuditError
from tests.helpers.exact import Chain, chains, enumerate_sweep, estimator_error, simplex, spiky
from tests.helpers.mutants import (
    WRONG_POPULATIONS,
    WRONG_PROPOSALS,
    WRONG_RESAMPLERS,
    WRONG_WEIGHTS,
    forget_particle_state,
    score_finished_again,
    with_messenger,
)

EXACT = 1e-10
THRESHOLDS = (0.0, 0.7, 1.0)
exactly = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.mark.parametrize("ess_threshold", THRESHOLDS)
@pytest.mark.parametrize("scheme", RESAMPLERS)
@exactly
@given(model=chains())
def test_evidence_and_expectations_are_unbiased(scheme: str, ess_threshold: float, model: Chain) -> None:
    """E[Z-hat] = Z and E[Z-hat sum W f] = Z E[f]: 5 schemes x 3 thresholds x 5 models = 75 cases."""
    probs, posterior = enumerate_sweep(model, 2, scheme, ess_threshold)
    assert estimator_error(model, probs, posterior) < EXACT


@pytest.mark.parametrize("ess_threshold", THRESHOLDS)
@settings(exactly, max_examples=8)
@given(model=chains(length=2))
def test_three_particles_systematic(ess_threshold: float, model: Chain) -> None:
    probs, posterior = enumerate_sweep(model, 3, "systematic", ess_threshold)
    assert estimator_error(model, probs, posterior) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "residual"])
@settings(exactly, max_examples=3)
@given(model=chains(length=2))
def test_three_particles(scheme: str, model: Chain) -> None:
    probs, posterior = enumerate_sweep(model, 3, scheme, 0.7)
    assert estimator_error(model, probs, posterior) < EXACT


@pytest.mark.parametrize("ess_threshold", THRESHOLDS)
@exactly
@given(model=chains(), proposal=st.lists(simplex(2), min_size=3, max_size=3).map(torch.stack))
def test_proposals_are_unbiased(ess_threshold: float, model: Chain, proposal: torch.Tensor) -> None:
    probs, posterior = enumerate_sweep(model, 2, "systematic", ess_threshold, proposal=proposal)
    assert estimator_error(model, probs, posterior) < EXACT


def test_proposal_equal_to_prior_changes_no_weight() -> None:
    model = spiky()
    prior = torch.stack([model.init, model.init, model.init])
    flat = Chain(model.init, torch.stack([model.init, model.init]), [torch.full_like(g, 2.0) for g in model.potentials], ends=False)
    _, posterior = enumerate_sweep(flat, 2, "systematic", 0.7, proposal=prior)
    torch.testing.assert_close(posterior.log_weights, torch.full_like(posterior.log_weights, 3 * torch.log(torch.tensor(2.0)).item()))


# Wrong engines. Each model below is drawn so that the bug shows: effect sizes are asserted, not only non-zero.
def worst(ess_threshold: float = 0.9, scheme: str = "systematic", **kwargs: Any) -> float:
    errors = []
    for seed in range(3):
        model = spiky(seed=seed)
        errors.append(estimator_error(model, *enumerate_sweep(model, 2, scheme, ess_threshold, **kwargs)))
    return max(errors)


def test_the_correct_engine_passes_where_the_mutants_fail() -> None:
    proposal = torch.tensor([[0.3, 0.7]] * 3, dtype=torch.float64)
    assert worst() < EXACT
    assert worst(scheme="residual") < EXACT
    assert worst(proposal=proposal) < EXACT


@pytest.mark.parametrize("name", WRONG_RESAMPLERS)
def test_rejects_wrong_resamplers(name: str) -> None:
    scheme, wrong = WRONG_RESAMPLERS[name]
    assert worst(1.0, scheme, resampler=wrong) > 1e-3


@pytest.mark.parametrize("name", [*WRONG_WEIGHTS, *WRONG_POPULATIONS])
def test_rejects_wrong_weights(name: str) -> None:
    assert worst(mutate=with_messenger((WRONG_WEIGHTS | WRONG_POPULATIONS)[name])) > 1e-2


@pytest.mark.parametrize("name", WRONG_PROPOSALS)
def test_rejects_wrong_proposals(name: str) -> None:
    proposal = torch.tensor([[0.3, 0.7]] * 3, dtype=torch.float64)
    assert worst(proposal=proposal, mutate=with_messenger(WRONG_PROPOSALS[name])) > 1e-2


def test_rejects_finished_particles_scored_again() -> None:
    model = spiky()
    probs, posterior = enumerate_sweep(score_finished_again(model), 2, "systematic", 0.7)
    assert estimator_error(model, probs, posterior) > 1e-2


def test_the_audit_rejects_stale_state_that_the_evidence_does_not_show() -> None:
    torch.manual_seed(0)
    model = spiky(ends=False)
    assert SMC(model, 50, ess_threshold=1.0, max_plate_nesting=1, audit=True).run(4).audit.error == 0.0
    with pytest.raises(AuditError, match=r"site '[xy]_\d', particle .* does not thread"):
        SMC(forget_particle_state(model), 50, ess_threshold=1.0, max_plate_nesting=1, audit=True).run(4)
