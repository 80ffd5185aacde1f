"""StepProposal(constraint=...): E[Z-hat] and E[Z-hat f] with all randomness enumerated; wrong weights are rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from ppl_llm import Context, TabularLM
from ppl_llm.constraints import Automaton
from ppl_llm.constraints.automaton import AutomatonStates
from ppl_llm.lm.decoding import constrained_sampler
from tests.helpers.constrained import ListedSMC, Program, errors, programs


def example(**options: Any) -> Program:
    """A language over several steps, with masses far from one, ends in some states, and a dead end after "aa" of "a" or "b"."""
    logits = torch.tensor([[5.0, 3.0, 1.0], [2.0, 4.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64).log()
    table = torch.tensor([[1, 2, -1], [3, 2, -1], [3, 0, -1], [4, 2, -1], [-1, -1, -1]])
    accepting = torch.tensor([True, False, True, False, False])
    return Program(logits, Automaton(table, accepting), torch.tensor([0.5, 2.0, 1.0, 0.3], dtype=torch.float64), options)


SCHEMES = [("systematic", 0.0), ("systematic", 0.7), ("systematic", 1.0), ("stratified", 1.0), ("residual", 0.7), ("ssp", 1.0)]


@pytest.mark.parametrize(("scheme", "threshold"), SCHEMES)
def test_evidence_is_the_probability_of_the_language(scheme: str, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    program = example()
    probs, posterior = ListedSMC(program, 2, scheme, threshold).run(monkeypatch)
    assert max(errors(program, probs, posterior)) < 1e-10
    assert bool((posterior.log_weights == -torch.inf).any()), "the example has dead ends"


@pytest.mark.parametrize("options", [{"top_p": 0.87}, {"top_k": 2}, {"temperature": 0.5}])
def test_masses_are_those_of_the_warped_model(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    program = example(**options)
    assert len([mass for mass in program.texts().values() if mass > 0]) > 5, "the warped model still writes many texts"
    probs, posterior = ListedSMC(program, 2, "systematic", 1.0).run(monkeypatch)
    assert max(errors(program, probs, posterior)) < 1e-10


@given(programs())
@settings(max_examples=25, deadline=None)
def test_evidence_of_automata_that_hypothesis_draws(program: Program) -> None:
    with pytest.MonkeyPatch.context() as patch:
        probs, posterior = ListedSMC(program, 1, "systematic", 0.0).run(patch)
    if sum(program.texts().values()) == 0:
        assert not bool((posterior.log_evidence > -torch.inf).any())
        return
    assert max(errors(program, probs, posterior)) < 1e-10


@given(programs())
@settings(max_examples=6, deadline=None)
def test_evidence_of_two_particles_of_automata_that_hypothesis_draws(program: Program) -> None:
    with pytest.MonkeyPatch.context() as patch:
        probs, posterior = ListedSMC(program, 2, "systematic", 1.0).run(patch)
    if sum(program.texts().values()) > 0:
        assert max(errors(program, probs, posterior)) < 1e-10


def rejected(program: Program, patch: pytest.MonkeyPatch) -> float:
    """Error of the estimates of two particles, resampled at each barrier."""
    probs, posterior = ListedSMC(program, 2, "systematic", 1.0).run(patch)
    return max(errors(program, probs, posterior))


def test_rejects_weights_without_the_masses(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TabularLM.sample_constrained

    def without(*args: Any) -> Any:
        sample = real(*args)
        return sample._replace(log_masses=torch.where(sample.log_masses == -torch.inf, -torch.inf, 0.0).double())

    monkeypatch.setattr(TabularLM, "sample_constrained", without)
    assert rejected(example(), monkeypatch) > 0.05


def test_rejects_masses_of_the_unwarped_model(monkeypatch: pytest.MonkeyPatch) -> None:
    program = example(top_p=0.87)
    real = constrained_sampler.warp
    whole: dict[str, Tensor] = {}

    def warp(logits: Tensor, options: Any) -> Tensor:
        whole["logits"] = logits.log_softmax(-1)
        return real(logits, options)

    draw = constrained_sampler.restricted_draw

    def unwarped(logits: Tensor, allowed: Tensor, u: Tensor) -> Any:
        mass = whole["logits"].masked_fill(~allowed, -torch.inf).logsumexp(-1)
        found = draw(logits, allowed, u)
        return found._replace(log_masses=torch.where(found.log_masses == -torch.inf, -torch.inf, mass))

    monkeypatch.setattr(constrained_sampler, "warp", warp)
    monkeypatch.setattr(constrained_sampler, "restricted_draw", unwarped)
    assert rejected(program, monkeypatch) > 0.01


def test_rejects_states_of_before_the_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """States that stay in their place while resampling moves the particles."""
    before: list[Context] = []
    reorder, generated = Context.reorder, constrained_sampler.generated

    def moved(context: Context, index: Tensor) -> Context:
        before[:] = [context]
        return reorder(context, index)

    monkeypatch.setattr(Context, "reorder", moved)
    monkeypatch.setattr(constrained_sampler, "generated", lambda context, some: generated(before[0] if before else context, some))
    assert rejected(example(), monkeypatch) > 0.01


def test_rejects_texts_that_end_where_they_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutomatonStates, "may_end", lambda self: torch.ones_like(self._current, dtype=torch.bool))
    assert rejected(example(), monkeypatch) > 0.01
