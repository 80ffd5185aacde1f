"""``proposals=constraint``: E[Z-hat] and E[Z-hat f] with all randomness enumerated; wrong weights are rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import SMC, ParticleGibbs, StepProposal, SuffixMH
from ppl_llm.constraints import Automaton
from ppl_llm.inference import RESAMPLERS, PrefixWalk
from ppl_llm.inference.mcmc import rejuvenation
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


@given(programs(), st.sampled_from(sorted(RESAMPLERS)), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=12, deadline=None)
def test_evidence_of_two_particles_of_automata_that_hypothesis_draws(program: Program, scheme: str, threshold: float) -> None:
    probs, posterior = ListedSMC(program, 2, scheme, threshold).run()
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


# moves ----------------------------------------------------------------------------------------------------------------------------------


def without_dead_ends() -> Program:
    """No two a, one after the other."""
    table, accepting = torch.tensor([[1, 0, -1], [-1, 0, -1]]), torch.tensor([True, True])
    return replace(example(), constraint=Automaton(table, accepting))


def deviation(kernel: Callable[..., Any], program: Program) -> float:
    """In standard errors over 3000 populations, the largest of Z-hat, Z-hat times the weight of ended texts, and times their lengths."""
    columns, exact = 3000, program.texts()
    pyro.set_rng_seed(0)
    smc = SMC(program, 4, max_plate_nesting=1, ess_threshold=1.0, rejuvenate=kernel, proposals=program.constraint)
    posterior = smc.run(columns)
    mass = posterior.log_evidence.exp() * posterior.weights.nan_to_num(0.0)  # [N, columns]
    context = posterior.value
    length = (context.lengths - 1).double()
    found = 0.0
    for of_particles, of_text in (
        (torch.ones_like(length), lambda text: 1.0),
        (context.done.double(), lambda text: float(text[-1] == 2)),
        (length, len),
    ):
        each = (mass * of_particles).sum(0)
        expected = sum(p * of_text(text) for text, p in exact.items())
        found = max(found, abs(float(each.mean()) - expected) / (float(each.std()) / math.sqrt(columns)))
    return found


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=3)])
def test_moves_stay_in_the_language(kernel: Callable[..., Any]) -> None:
    """Five standard errors of three figures: false alarm below 2e-6."""
    for program in (example(), without_dead_ends()):
        assert deviation(kernel, program) < 5


FREE_MOVES = {
    "no proposals": PrefixWalk,
    "others": partial(SuffixMH, proposals=StepProposal(temperature=2.0)),
    "another constraint": partial(SuffixMH, proposals=example().constraint),
}


@pytest.mark.parametrize("name", FREE_MOVES)
def test_moves_out_of_the_language_are_refused(name: str) -> None:
    guide = example().constraint
    for proposals in (guide, {"step_0": guide}):
        with pytest.raises(ValueError, match="proposals under a constraint are a part of the target, and this kernel has others"):
            SMC(example(), 4, proposals=proposals, rejuvenate=FREE_MOVES[name])


def test_rejects_moves_out_of_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejuvenation, "are_restricted", lambda proposals: False)
    assert deviation(FREE_MOVES["others"], without_dead_ends()) > 5
