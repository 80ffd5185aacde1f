"""Particle Gibbs leaves the posterior invariant, exactly: pi K = pi by transition matrices of the real conditional sweep."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from pyro.infer import MCMC
from torch import Tensor

from ppl_llm.inference import ParticleGibbs, ssp
from tests.helpers.exact import Chain, chains
from tests.helpers.exact_conditional import invariance_error
from tests.helpers.mutants import WRONG_CONDITIONAL
from tests.inference.test_smc_exact import EXACT, spiky

exactly = settings(max_examples=4, deadline=None, derandomize=True)


@pytest.mark.parametrize("ess_threshold", [0.7, 1.0])
@pytest.mark.parametrize(("scheme", "length"), [("multinomial", 3), ("systematic", 3), ("stratified", 2), ("residual", 2)])
@exactly
@given(data=chains(length=3))
def test_two_particles(scheme: str, length: int, ess_threshold: float, data: Chain) -> None:
    model = Chain(data.init, data.transition, data.potentials[:length], data.ends)
    assert invariance_error(model, 2, scheme, ess_threshold) < EXACT


@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_three_particles(scheme: str) -> None:
    """Two are too few to tell some wrong schemes from right ones."""
    model = spiky()
    model.potentials = model.potentials[:2]
    assert invariance_error(model, 3, scheme, 1.0) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["stratified", "residual"])
def test_three_particles_slow(scheme: str) -> None:
    model = spiky(ends=False)
    model.potentials, model.last_barrier = model.potentials[:2], False
    assert invariance_error(model, 3, scheme, 0.7) < EXACT


@pytest.mark.parametrize("name", WRONG_CONDITIONAL)
def test_rejects_wrong_conditional_schemes(name: str) -> None:
    """Two particles are too few to tell the last one."""
    wrong, cells, n = WRONG_CONDITIONAL[name]
    model = spiky(ends=False)
    model.potentials = model.potentials[:2]
    assert invariance_error(model, n, cells, 1.0, wrong=wrong) > 1e-3


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_the_engine_keeps_the_posterior_with_references_of_any_length(ess_threshold: float) -> None:
    """100 000 references from the exact posterior, one sweep: chi-square over all paths (false alarm 1e-6)."""
    pyro.set_rng_seed(0)
    model, replicates = spiky(), 100_000
    paths = model.paths()
    table = torch.tensor(list(paths))
    pi = torch.tensor(list(paths.values())) / sum(paths.values())
    drawn = table[torch.multinomial(pi, replicates, replacement=True)]
    kernel = ParticleGibbs(model, 3, ess_threshold=ess_threshold, max_plate_nesting=1)
    after = kernel.sweep({f"x_{t}": drawn[:, t] for t in range(3)}, replicates).draw()
    moved = torch.stack([after[f"x_{t}"] for t in range(3)], -1)
    counts = torch.tensor([int((moved == row).all(-1).sum()) for row in table])
    expected = replicates * pi
    chi2, df = float(((counts - expected) ** 2 / expected).sum()), len(table) - 1
    assert chi2 < df + 4.9 * math.sqrt(2 * df) + 16  # Laurent & Massart (2000): P < 1e-5 beyond
    assert 0.2 < float((moved == drawn).all(-1).double().mean()) < 0.95  # it moves


def single(model: Chain) -> Any:
    return lambda: model(1)


def test_one_particle_never_moves() -> None:
    pyro.set_rng_seed(1)
    kernel = ParticleGibbs(single(spiky()), 1, max_plate_nesting=1)
    posterior = kernel.run(5)
    assert len({tuple(posterior.sites[f"x_{t}"][i].item() for t in range(3)) for i in range(5)}) == 1


def test_chain_of_filters_finds_the_posterior() -> None:
    pyro.set_rng_seed(2)
    model = spiky()
    paths = model.paths()
    total = sum(paths.values())
    posterior = ParticleGibbs(single(model), 8, max_plate_nesting=1).run(600, warmup_steps=10)
    assert posterior.num_particles == 4800 and len(posterior.iterations) == 600
    code = {sum((v + 1) * 3 ** (2 - t) for t, v in enumerate(path)): mass / total for path, mass in paths.items()}
    marginal = posterior.marginal(int)
    answer = marginal[0] if isinstance(marginal, list) else marginal
    assert sum(abs(answer.prob(c) - p) for c, p in code.items()) / 2 < 0.06
    with pytest.raises(ValueError, match="gives no evidence"):
        _ = posterior.log_evidence


def test_pyro_drives_the_kernel() -> None:
    pyro.set_rng_seed(3)
    model = spiky()
    paths = model.paths()
    chain = MCMC(ParticleGibbs(single(model), 6, max_plate_nesting=1), num_samples=500, warmup_steps=5, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()
    first = samples["x_0"].flatten()
    p = sum(mass for path, mass in paths.items() if path[0] == 1) / sum(paths.values())
    assert abs(float((first == 1).double().mean()) - p) < 0.12


def test_bad_arguments_and_interruption() -> None:
    with pytest.raises(ValueError, match=r"unknown conditional resampler 'ssp'\. Known: multinomial"):
        ParticleGibbs(spiky(), 4, resampler="ssp")
    with pytest.raises(ValueError, match="'ssp' has no conditional form"):
        ParticleGibbs(spiky(), 4, resampler=ssp)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 1, got 0"):
        ParticleGibbs(spiky(), 0)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        ParticleGibbs(single(spiky()), 2, max_plate_nesting=1).run(0)
    calls = []

    def stops() -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return spiky()(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        ParticleGibbs(stops, 2, max_plate_nesting=1).run(100)
    assert len(caught.value.partial_posterior.iterations) == 3  # type: ignore[attr-defined]
