"""Particle Gibbs with ancestor sampling, and with several references, leaves the posterior invariant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from ppl_llm.inference import TemperMessenger
from ppl_llm.inference.handlers.ancestor_messenger import AncestorMessenger
from tests.helpers.exact import Chain, chains
from tests.helpers.exact_conditional import conditional_outcomes, invariance_error, invariant_distribution
from tests.helpers.mutants import WRONG_ANCESTORS, WRONG_REFERENCES
from tests.helpers.programs_that_stop import Silent, Stopping, three_symbols
from tests.inference.test_smc_exact import EXACT, spiky

exactly = settings(max_examples=3)
SCHEMES = ("multinomial", "systematic", "stratified", "residual")
PGAS: dict[str, Any] = {"messenger": AncestorMessenger, "ancestors": True}


def shortened(model: Chain, length: int, last_barrier: bool = False) -> Chain:
    return type(model)(model.init, model.transition, model.potentials[:length], model.ends, last_barrier=last_barrier)


@pytest.mark.parametrize("ess_threshold", [0.7, 1.0])
@pytest.mark.parametrize("scheme", SCHEMES)
@exactly
@given(data=chains(length=3))
def test_two_particles(scheme: str, ess_threshold: float, data: Chain) -> None:
    """pi K = pi by transition matrices: 4 schemes x 2 thresholds x 3 models."""
    model = shortened(data, 3 if scheme in ("multinomial", "systematic") else 2)
    assert invariance_error(model, 2, scheme, ess_threshold, **PGAS) < EXACT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_three_particles(scheme: str) -> None:
    for model in (shortened(spiky(ends=False), 2), three_symbols(2, ends=True)):
        if scheme == "residual" and model.ends:
            continue  # 642 978 columns
        assert invariance_error(model, 3, scheme, 1.0) < EXACT
        assert invariance_error(model, 3, scheme, 1.0, **PGAS) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_three_particles_three_steps(scheme: str, ends: bool) -> None:
    model = shortened(spiky(ends), 3)
    assert invariance_error(model, 3, scheme, 0.9, **PGAS) < EXACT


def test_one_particle() -> None:
    assert invariance_error(shortened(spiky(), 3), 1, "multinomial", 1.0, **PGAS) < EXACT


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", [Stopping, Silent])
def test_references_of_any_length_without_the_sites_they_lack(kind: type[Stopping], n: int) -> None:
    for seed in range(2):
        model = three_symbols(3 if n == 2 else 2, True, seed, kind)
        assert invariance_error(model, n, "systematic", 1.0, own_sites_only=True) < EXACT
        assert invariance_error(model, n, "systematic", 1.0, own_sites_only=True, **PGAS) < EXACT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proposals(scheme: str) -> None:
    """Weights p / q: with ancestors the suffix counts by the target, whatever it was proposed from."""
    proposal = torch.tensor([[0.5, 0.2, 0.3], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
    model = three_symbols(2, True, 1)
    assert invariance_error(model, 2, scheme, 0.9, proposal=proposal) < EXACT
    assert invariance_error(model, 2, scheme, 0.9, proposal=proposal, **PGAS) < EXACT


@pytest.mark.parametrize(("likelihood", "prior"), [(0.3, 1.0), (1.0, 2.0), (0.0, 0.5)])
def test_tempered_targets(likelihood: float, prior: float) -> None:
    """The suffix counts with its powers: p(x)^prior p(y | x)^likelihood."""
    data = shortened(spiky(ends=False), 3)
    error = tempered_error(data, likelihood, prior, likelihood, prior)
    assert error < EXACT
    assert tempered_error(data, likelihood, prior, 1.0, 1.0) > 1e-3  # another target


def tempered_error(data: Chain, likelihood: float, prior: float, target_likelihood: float, target_prior: float) -> float:
    references, _ = invariant_distribution(data)
    plain = Chain(data.init, data.transition, [torch.ones_like(g) for g in data.potentials], data.ends)
    p = torch.tensor([plain.paths()[tuple(path)] for path in references.tolist()], dtype=torch.float64)
    joint = torch.tensor([data.paths()[tuple(path)] for path in references.tolist()], dtype=torch.float64)
    pi = p**target_prior * (joint / p) ** target_likelihood
    pi = pi / pi.sum()
    program = TemperMessenger(likelihood, prior)(data)
    which, probs, posterior = conditional_outcomes(data, 2, "multinomial", 1.0, references, program=program, **PGAS)
    found = torch.zeros(len(pi), dtype=torch.float64)
    for row, path in enumerate(references.unbind()):
        same = torch.stack([posterior.sites[f"x_{t}"] == path[t] for t in range(data.length)]).all(0)
        found[row] = (pi[which] * probs * posterior.weights * same).sum()
    return float((found - pi).abs().max())


# Wrong engines
@pytest.mark.parametrize("name", WRONG_ANCESTORS)
def test_rejects_wrong_ancestor_weights(name: str) -> None:
    model = shortened(spiky(ends=False), 3)
    assert invariance_error(model, 2, "multinomial", 1.0, **PGAS) < EXACT
    assert invariance_error(model, 2, "multinomial", 1.0, messenger=WRONG_ANCESTORS[name], ancestors=True) > 1e-2


@pytest.mark.parametrize("name", WRONG_REFERENCES)
def test_rejects_wrong_references(name: str) -> None:
    """Two particles are too few to tell a copied reference from a branched one: the kernel is then reversible."""
    wrong, needs_program, scheme, n = WRONG_REFERENCES[name]
    model = shortened(spiky(ends=False), 2)
    assert invariance_error(model, n, scheme, 1.0) < EXACT
    assert invariance_error(model, n, scheme, 1.0, messenger=wrong, ancestors=needs_program) > 5e-3
