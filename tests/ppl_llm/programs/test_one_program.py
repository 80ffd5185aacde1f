"""One reasoning program under every algorithm: one word changes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pytest
import torch

from ppl_llm.inference import (
    ABMCTS,
    DORA,
    DVTS,
    MCTS,
    PIMH,
    REBASE,
    SMC,
    BeamSearch,
    BestFirst,
    BestOfN,
    EntropicAnnealing,
    Enumeration,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    PrefixWalk,
    SelfConsistency,
    SpeculativeRejection,
    SuffixMH,
    TemperedSMC,
)
from tests.helpers.reasoning import MAX_STEPS, distribution, key, solve, trajectories

# (algorithm, its arguments, leading arguments of run, independent draws that its estimate is worth at least)
POSTERIORS: list[tuple[Any, dict[str, Any], tuple[int, ...], float]] = [
    (Enumeration, {}, (), 1e9),
    (Importance, {"num_particles": 2000}, (), 500),
    (SMC, {"num_particles": 2000}, (), 300),
    (SMC, {"num_particles": 500, "islands": 4}, (), 300),
    (SMC, {"num_particles": 2000, "selection": EntropicAnnealing("ess", num_steps=MAX_STEPS), "ess_threshold": 1.0}, (), 300),
    (TemperedSMC, {"num_particles": 1000}, (), 200),
    (TemperedSMC, {"num_particles": 300, "betas": [0.3, 1.0], "kernel": partial(ParticleGibbs, num_particles=3)}, (), 60),
    (ParticleGibbs, {"num_particles": 32}, (60,), 60),
    (ParticleGibbs, {"num_particles": 16, "ancestor_sampling": True}, (30,), 30),
    (ParticleGibbs, {"num_particles": 16, "num_references": 3, "resampler": "systematic"}, (40,), 60),
    (PIMH, {"num_particles": 32}, (60,), 60),
    (SuffixMH, {}, (250,), 25),
    (PrefixWalk, {"steps": 150}, (16,), 10),
    (ParallelTempering, {"betas": [0.2, 0.6, 1.0]}, (200,), 30),
]

SEARCHES: list[tuple[Any, dict[str, Any]]] = [
    (BeamSearch, {"beam_width": 3, "expand": 4}),
    (BeamSearch, {"beam_width": 3, "expand": 4, "lookahead": 1, "filter_duplicates": True}),
    (DVTS, {"num_subtrees": 3, "expand": 4}),
    (REBASE, {"num_particles": 12}),
    (DORA, {"num_particles": 12, "embed": lambda context: torch.nn.functional.one_hot(context.lengths, 99).double()}),
    (BestFirst, {"expand": 12, "budget": 60}),
    (MCTS, {"simulations": 60, "batch": 12}),
    (ABMCTS, {"simulations": 60, "batch": 12}),
    (SpeculativeRejection, {"num_particles": 12}),
    (BestOfN, {"num_particles": 12}),
    (SelfConsistency, {"num_particles": 12}),
]


def name_of(value: Any) -> str | None:
    return value.__name__ if isinstance(value, type) else ", ".join(value) if isinstance(value, dict) else None


def by_first_token(table: dict[tuple[int, ...], float]) -> torch.Tensor:
    probs = torch.zeros(4, dtype=torch.float64)
    for tokens, mass in table.items():
        probs[tokens[0]] += mass
    return probs


@pytest.mark.parametrize(("algorithm", "arguments", "run", "draws"), POSTERIORS, ids=name_of)
def test_every_algorithm_gives_the_same_posterior(algorithm: Any, arguments: dict[str, Any], run: tuple[int, ...], draws: float) -> None:
    """4.9 deviations of so many draws (false alarm 1e-6 each if they are worth as many); the prior would be rejected."""
    pyro.set_rng_seed(0)
    posterior = algorithm(solve, **arguments).run(*run, "a")
    exact = by_first_token(distribution(lambda steps, z: math.prod(1 / (1 + math.exp(-value)) for value in z)))
    found = by_first_token(dict(posterior.marginal(key).probs))
    assert float(found.sum()) == pytest.approx(1.0)
    assert ((found - exact).abs() < 4.9 * (exact * (1 - exact) / draws).sqrt() + 1e-6).all()
    assert {tuple(tokens) for tokens in posterior.marginal(key)} <= {tokens for tokens, *_ in trajectories()}
    assert posterior.value.done.shape == posterior.weights.shape == (posterior.num_particles,)


def test_the_first_token_tells_posterior_from_prior() -> None:
    """Effect size of an algorithm that ignores the rewards."""
    exact = by_first_token(distribution(lambda steps, z: math.prod(1 / (1 + math.exp(-value)) for value in z)))
    assert float((by_first_token(distribution(lambda steps, z: 1.0)) - exact).abs().max()) > 0.1


@pytest.mark.parametrize(("algorithm", "arguments"), SEARCHES, ids=name_of)
def test_every_search_runs_the_same_program(algorithm: Any, arguments: dict[str, Any]) -> None:
    pyro.set_rng_seed(1)
    posterior = algorithm(solve, **arguments).run("a")
    assert posterior.num_particles == 12
    assert set(posterior.marginal(key)) <= {tokens for tokens, *_ in trajectories()}
    with pytest.raises(ValueError, match=r"gives no evidence.*Run SMC or Importance on the same model"):
        _ = posterior.log_evidence
