"""Pyro's own SMCFilter on the reasoning model, against enumeration and against our SMC."""

from __future__ import annotations

import math
from collections import defaultdict

import pyro
import pytest
import torch
from pyro.infer import SMCFilter

from ppl_llm import SMC, SMCFilterAdapter, TabularLM, TabularReward, reasoning
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, distribution, key

OPTIONS = {"stop": ";", "max_tokens": MAX_TOKENS, "max_steps": MAX_STEPS, "temperature": TEMPERATURE}


def filtered(particles: int, ess_threshold: float = 0.5, preset: str = "exact") -> tuple[SMCFilterAdapter, SMCFilter]:
    adapter = SMCFilterAdapter(reasoning(LM, PRM, preset, **OPTIONS))
    smc = SMCFilter(adapter, adapter.guide, particles, max_plate_nesting=0, ess_threshold=ess_threshold)
    smc.init("a")
    while not adapter.done:
        smc.step()
    return adapter, smc


def exact_distribution(tokens: int = 1) -> dict[tuple[int, ...], float]:
    """Posterior of the first tokens, by enumeration."""
    table: dict[tuple[int, ...], float] = defaultdict(float)
    for x, mass in distribution(lambda steps, z: math.prod(1 / (1 + math.exp(-value)) for value in z)).items():
        table[x[:tokens]] += mass
    return dict(table)


@pytest.mark.parametrize("ess_threshold", [0.01, 0.5, 1.0])
def test_the_posterior_is_the_enumerated_one(ess_threshold: float) -> None:
    """40 000 particles; resampled particles are correlated, so a tenth of them is taken as the sample size. False alarm below 1e-6."""
    pyro.set_rng_seed(0)
    adapter, smc = filtered(40_000, ess_threshold)
    context = adapter.context(smc.state)
    found = torch.zeros(4, dtype=torch.float64).index_add_(0, context.tokens[:, 1], smc.state._log_weights.softmax(0).double())
    exact = exact_distribution()
    for token in range(4):
        p = exact.get((token,), 0.0)
        assert abs(float(found[token]) - p) < 4.9 * math.sqrt(p * (1 - p) / 4000) + 1e-9
    assert max(abs(float(found[t]) - 0.25) for t in range(4)) > 0.1  # a uniform guess would be rejected


def test_answers_agree_with_ours() -> None:
    """The marginal over whole texts, total variation of two independent runs of 20 000 particles each."""
    pyro.set_rng_seed(1)
    adapter, smc = filtered(20_000)
    weights = smc.state._log_weights.softmax(0)
    theirs: dict[tuple[int, ...], float] = defaultdict(float)
    rows, where = adapter.context(smc.state).tokens.unique(dim=0, return_inverse=True)
    for row, mass in zip(rows.tolist(), torch.zeros(len(rows)).index_add_(0, where, weights).tolist(), strict=True):
        theirs[tuple(v for v in row[1:] if v >= 0)] += mass
    exact = exact_distribution(100)
    assert sum(abs(theirs.get(x, 0.0) - p) for x, p in exact.items()) / 2 < 0.12


def test_answers_are_a_marginal() -> None:
    pyro.set_rng_seed(2)
    lm = TabularLM(torch.zeros(4, 4), ["\\boxed{1}", "\\boxed{2}", "$", "p"], eos="$")
    model = reasoning(lm, TabularReward(torch.tensor([0.5, -0.5, 0.0, 0.0])), stop=";", max_tokens=1, max_steps=4)
    adapter = SMCFilterAdapter(model)
    smc = SMCFilter(adapter, adapter.guide, 3000, max_plate_nesting=0)
    smc.init("p")
    while not adapter.done:
        smc.step()
    ours = SMC(model, 3000).run("p").answers()
    theirs = adapter.answers(smc)
    assert sum(theirs.probs.values()) == pytest.approx(1.0, abs=1e-4)
    assert set(theirs) == {"1", "2", None}
    for answer in theirs:
        assert theirs[answer] == pytest.approx(ours[answer], abs=0.06)  # 4.9 deviations of 1500 draws


def test_particles_follow_their_ancestors() -> None:
    """A particle's context and its integer are permuted alike: copies have the same text."""
    pyro.set_rng_seed(3)
    adapter, smc = filtered(50, ess_threshold=1.0)
    rows = smc.state["particle"]
    assert len(rows.unique()) < 50
    context = adapter.context(smc.state)
    assert [key(context[i]) for i in range(50)] == [key(adapter._context[int(row)]) for row in rows]


def test_bad_use_is_explained() -> None:
    model = reasoning(LM, PRM, **OPTIONS)
    adapter = SMCFilterAdapter(model)
    smc = SMCFilter(adapter, adapter.guide, 4, max_plate_nesting=0)
    with pytest.raises(ValueError, match="no problem yet"):
        adapter.step(smc.state)
    smc.init("a")
    with pytest.raises(ValueError, match="no answers before the first step"):
        adapter.answers(smc)
    for _ in range(MAX_STEPS):
        smc.step()
    with pytest.raises(ValueError, match="all 3 steps are done"):
        smc.step()
    with pytest.raises(ValueError, match="one problem at a time, got 2"):
        smc.init(["a", "b"])
    with pytest.raises(ValueError, match="must be made by reasoning"):
        SMCFilterAdapter(lambda problem: None)  # type: ignore[arg-type]
