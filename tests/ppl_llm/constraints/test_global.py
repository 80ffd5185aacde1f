"""StepProposal(constraint=...): E[Z-hat] and E[Z-hat f] with all randomness enumerated; wrong weights are rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from ppl_llm.constraints import Automaton
from ppl_llm.inference import RESAMPLERS
from tests.helpers.constrained import ListedSMC, Program, errors, programs
from tests.helpers.constraint_mutants import WRONG_LANGUAGES, WRONG_SAMPLERS


def example(**options: Any) -> Program:
    """A language over several steps, with masses far from one, ends in some states, and a dead end after "aa" of "a" or "b"."""
    logits = torch.tensor([[5.0, 3.0, 1.0], [2.0, 4.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64).log()
    table = torch.tensor([[1, 2, -1], [3, 2, -1], [3, 0, -1], [4, 2, -1], [-1, -1, -1]])
    accepting = torch.tensor([True, False, True, False, False])
    return Program(logits, Automaton(table, accepting), torch.tensor([0.5, 2.0, 1.0, 0.3], dtype=torch.float64), options)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scheme", sorted(RESAMPLERS))
def test_evidence_is_the_probability_of_the_language(scheme: str, threshold: float) -> None:
    program = example()
    probs, posterior = ListedSMC(program, 2, scheme, threshold).run()
    assert max(errors(program, probs, posterior)) < 1e-10
    assert bool((posterior.log_weights == -torch.inf).any()), "the example has dead ends"
    assert bool(posterior.resampled.any()) == (threshold > 0)


@pytest.mark.parametrize("options", [{"top_p": 0.87}, {"top_k": 2}, {"temperature": 0.5}])
def test_masses_are_those_of_the_warped_model(options: dict[str, Any]) -> None:
    program = example(**options)
    assert len([mass for mass in program.texts().values() if mass > 0]) > 5, "the warped model still writes many texts"
    probs, posterior = ListedSMC(program, 2, "systematic", 1.0).run()
    assert max(errors(program, probs, posterior)) < 1e-10


@given(programs())
@settings(max_examples=25, deadline=None)
def test_evidence_of_automata_that_hypothesis_draws(program: Program) -> None:
    probs, posterior = ListedSMC(program, 1, "systematic", 0.0).run()
    if sum(program.texts().values()) == 0:
        assert not bool((posterior.log_evidence > -torch.inf).any())
        return
    assert max(errors(program, probs, posterior)) < 1e-10


@given(programs())
@settings(max_examples=6, deadline=None)
def test_evidence_of_two_particles_of_automata_that_hypothesis_draws(program: Program) -> None:
    probs, posterior = ListedSMC(program, 2, "systematic", 1.0).run()
    if sum(program.texts().values()) > 0:
        assert max(errors(program, probs, posterior)) < 1e-10


@pytest.mark.parametrize("name", WRONG_SAMPLERS)
def test_rejects_wrong_constrained_steps(name: str) -> None:
    """Two particles, resampled at each barrier. Errors found: 0.10, 0.09 and 0.08 of Z."""
    sampler, options = WRONG_SAMPLERS[name]
    program = example(**options)
    assert max(errors(program, *ListedSMC(program, 2, "systematic", 1.0).run(sampler))) > 0.05


@pytest.mark.parametrize("name", WRONG_LANGUAGES)
def test_rejects_wrong_languages(name: str) -> None:
    """Error found: 0.07 of Z."""
    program = example()
    found = ListedSMC(program, 2, "systematic", 1.0).run(constraint=WRONG_LANGUAGES[name](program.constraint))
    assert max(errors(program, *found)) > 0.05
