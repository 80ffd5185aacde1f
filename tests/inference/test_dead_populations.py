"""Populations whose every particle has weight zero: an estimate of zero, which the others outlive and every mean of evidences counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import (
    DVTS,
    PIMH,
    PMMH,
    SMC,
    BeamSearch,
    BestOfN,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    SelfConsistency,
    SMCFailed,
    SuffixMH,
    TemperedSMC,
    WasteFreeSMC,
    barrier,
    replicate,
)
from tests.helpers.exact import Chain, enumerate_sweep, estimator_error
from tests.helpers.population_mutants import WRONG_DEATHS
from tests.inference.posterior.test_islands import enumerate_islands

EXACT = 1e-10
Z = 4.9  # two-sided false alarm 1e-6 per test


def walled(length: int = 2, last_barrier: bool = True) -> Chain:
    """A chain on which half of the first symbols and a third of the others are impossible."""
    first = torch.tensor([1.0, 0.0, 0.7], dtype=torch.float64)  # of the codes 0 (unused), 1 and 2
    second = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    return Chain(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.float64),
        [first, second][:length],
        ends=False,
        last_barrier=last_barrier,
    )


@pytest.mark.parametrize("ess_threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual", "ssp"])
def test_evidence_and_expectations_are_unbiased_with_deaths(scheme: str, ess_threshold: float) -> None:
    """Every outcome of two particles: E[Z-hat] = Z and E[Z-hat sum W f] = Z E[f], a quarter of the populations dead after a step."""
    probs, posterior = enumerate_sweep(walled(), 2, scheme, ess_threshold)
    assert estimator_error(walled(), probs, posterior) < EXACT
    dead = posterior.dead
    assert float(probs[dead].sum()) > 0.25
    assert (posterior.log_evidence == -math.inf).equal(dead)
    assert (posterior.weights.sum(0)[dead] == 0).all() and torch.allclose(posterior.weights.sum(0)[~dead], torch.ones(1).double())
    assert not posterior.resampled[1, posterior.ess[1] == 0].any()  # what died in the first step


@pytest.mark.parametrize("ess_threshold", [0.0, 0.7, 1.0])
def test_islands_are_unbiased_with_deaths(ess_threshold: float) -> None:
    probs, posterior = enumerate_islands(walled(), 2, 2, "systematic", ess_threshold)
    assert estimator_error(walled(), probs, posterior) < EXACT
    alone = torch.stack([island.dead for island in posterior.islands])
    assert torch.equal(posterior.dead, alone.all(0)) and float(probs[alone.any(0) & ~alone.all(0)].sum()) > 0.3


def coin_evidence(messenger: Any = None) -> tuple[Tensor, Tensor]:
    """Probabilities of all outcomes of two particles that toss a coin which must show 1, and the evidence that the filter gives.

    An engine that refuses an outcome with dead populations gives the evidence of each outcome alone, nan where it fails.
    """
    model = Chain(torch.tensor([0.5, 0.5]).double(), torch.eye(2).double(), [torch.tensor([1.0, 0.0, 1.0]).double()], ends=False)

    def mutate(smc: SMC) -> None:
        if messenger is not None:
            smc.messenger = lambda: messenger(smc.options)  # type: ignore[method-assign]

    probs, posterior = enumerate_sweep(model, 2, "multinomial", 0.0, mutate=mutate)
    return probs, posterior.log_evidence.exp()


def test_a_coin_that_must_show_one() -> None:
    """The exact figures: E[Z-hat] = 1/2, deaths included; 2/3 if only survivors count."""
    probs, evidence = coin_evidence()
    assert float(probs @ evidence) == pytest.approx(0.5, abs=1e-12)
    alive = evidence > 0
    assert float(probs[alive] @ evidence[alive] / probs[alive].sum()) == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize("name", WRONG_DEATHS)
def test_rejects_deaths_that_do_not_count(name: str) -> None:
    """An engine that loses the run with a population, or drops dead particles, does not give 1/2."""
    try:
        probs, evidence = coin_evidence(WRONG_DEATHS[name])
        mean = float(probs @ evidence)
    except SMCFailed:
        mean = math.nan
    assert not abs(mean - 0.5) < 0.1


# Algorithms ------------------------------------------------------------------------------------------------------------------------------


def narrow() -> Tensor:
    """Two coins of which the first must show 1 and the second what the first shows: Z = .3 * .6 = .18."""
    x = pyro.sample("x", dist.Bernoulli(0.3))
    pyro.factor("first", torch.where(x > 0, 0.0, -math.inf))
    x = barrier(x)
    y = pyro.sample("y", dist.Bernoulli(torch.where(x > 0, 0.6, 0.5)))
    pyro.factor("second", torch.where(y == x, 0.0, -math.inf))
    return barrier(x + y)


REPLICAS = 3000
ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "Importance": lambda model: Importance(model, 3, max_plate_nesting=1),
    "SMC": lambda model: SMC(model, 3, ess_threshold=1.0, max_plate_nesting=1),
    "SMC, islands": lambda model: SMC(model, 2, islands=2, max_plate_nesting=1),
    "TemperedSMC": lambda model: TemperedSMC(model, 3, betas=[0.5, 1.0], max_plate_nesting=1),
    "TemperedSMC of ParticleGibbs": lambda model: TemperedSMC(
        model, 3, betas=[0.5, 1.0], ess_threshold=1.0, kernel=partial(ParticleGibbs, num_particles=2), max_plate_nesting=1
    ),
    "WasteFreeSMC": lambda model: WasteFreeSMC(model, 4, chain_length=2, betas=[0.5, 1.0], max_plate_nesting=1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_evidence_counts_deaths(name: str) -> None:
    """Most of 3000 independent populations die; the mean of their estimates is .18 (z-test; a standard error of 5 % at most)."""
    pyro.set_rng_seed(1)
    found = ESTIMATORS[name](replicate(narrow, REPLICAS, 0)).run()
    z_hat = found.log_evidence.exp()
    error = float(z_hat.std()) / math.sqrt(REPLICAS)
    assert 0.1 * REPLICAS < int(found.dead.sum()) < 0.9 * REPLICAS
    assert abs(float(z_hat.mean()) - 0.18) < Z * error < 0.05 * 0.18 * Z
    assert (found.value.expand_as(found.weights)[found.weights > 0] == 2).all()
    assert json.loads(json.dumps(found.diagnostics()))["dead"] == found.dead.tolist()


def two_ways() -> Tensor:
    """Most starts are impossible, and the posterior is not degenerate: P(y = 1 | x = 1) = .25."""
    x = pyro.sample("x", dist.Bernoulli(0.3))
    pyro.factor("first", torch.where(x > 0, 0.0, -math.inf))
    x = barrier(x)
    y = pyro.sample("y", dist.Bernoulli(0.5))
    pyro.factor("second", torch.where(y > 0, math.log(0.1), math.log(0.3)))
    return barrier(y)


def scaled_ways() -> Tensor:
    """The same, with a parameter that is independent of it."""
    pyro.sample("scale", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
    return two_ways()


CHAINS: dict[str, Callable[[Any], Any]] = {
    "ParticleGibbs": lambda model: ParticleGibbs(model, 3, max_plate_nesting=1),
    "ParticleGibbs, systematic": lambda model: ParticleGibbs(model, 3, resampler="systematic", ess_threshold=1.0, max_plate_nesting=1),
    "ParticleGibbs, residual": lambda model: ParticleGibbs(model, 3, resampler="residual", ess_threshold=1.0, max_plate_nesting=1),
    "ParticleGibbs, ancestor sampling": lambda model: ParticleGibbs(
        model, 3, ancestor_sampling=True, ess_threshold=1.0, max_plate_nesting=1
    ),
    "PIMH": lambda model: PIMH(model, 3, max_plate_nesting=1),
    "PMMH": lambda model: PMMH(model, 3, ["scale"], max_plate_nesting=1),
    "SuffixMH": lambda model: SuffixMH(model, max_plate_nesting=1),
    "ParallelTempering": lambda model: ParallelTempering(model, [0.2, 1.0], max_plate_nesting=1),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_leave_dead_starts(name: str) -> None:
    """400 chains, of which many start dead: what is dead has no weight, and after 25 steps all have the exact distribution (z-test)."""
    pyro.set_rng_seed(2)
    kernel = CHAINS[name](replicate(scaled_ways if name == "PMMH" else two_ways, 400, 0))
    first: list[Tensor] = []
    chain = kernel.run(6, warmup_steps=25, callback=lambda iteration: first.append(iteration.dead))
    assert int(first[0].sum()) > 10 and int(first[-1].sum()) <= 2
    assert (chain.weights[chain.sites["x"] == 0] == 0).all()
    mean = (chain.weights * chain.sites["y"]).sum(0)[~chain.dead]
    assert abs(float(mean.mean()) - 0.25) < Z * float(mean.std()) / math.sqrt(len(mean)) < 0.1


# What a user sees ------------------------------------------------------------------------------------------------------------------------


def twenty(hopeless: int = 7) -> Tensor:
    """Twenty problems in a plate, one of which nothing can satisfy."""
    with pyro.plate("problems", 20, dim=-1):
        x = pyro.sample("x", dist.Bernoulli(torch.full((20,), 0.5)))
        pyro.factor("wall", torch.where(torch.arange(20) == hopeless, -math.inf, x * 0.5))
        x = barrier(x)
        y = pyro.sample("y", dist.Bernoulli(torch.full((20,), 0.5)))
        pyro.factor("late", y)
        return barrier(x + y)


EVERY: dict[str, Callable[[Any], Any]] = {
    **ESTIMATORS,
    "BeamSearch": lambda model: BeamSearch(model, 2, 2, max_plate_nesting=1),
    "DVTS": lambda model: DVTS(model, 2, 2, max_plate_nesting=1),
    "BestOfN": lambda model: BestOfN(model, 4, max_plate_nesting=1),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_dead_problem_leaves_the_others(name: str) -> None:
    pyro.set_rng_seed(3)
    found = EVERY[name](twenty).run()
    expected = torch.arange(20) == 7
    assert torch.equal(found.dead, expected) and found.complete
    assert torch.equal(found.weights.sum(0) > 0, ~expected) and not found.weights.isnan().any()
    marginal = found.marginal(lambda value: value)
    assert len(marginal[7]) == 0 and marginal[7].prob(1.0) == 0.0 and all(len(each) > 0 for i, each in enumerate(marginal) if i != 7)
    with pytest.raises(ValueError, match="empty distribution has no mode: every particle of the population has weight zero"):
        _ = marginal[7].mode
    with pytest.raises(ValueError, match="every particle of problem 7 has weight zero, so there is nothing to draw"):
        found.draw()
    if found.estimates_posterior:
        assert torch.equal(found.log_evidence == -math.inf, expected)
    assert "nan" not in repr(found)


def test_self_consistency_does_not_see_what_is_observed() -> None:
    assert not SelfConsistency(twenty, 4, max_plate_nesting=1).run().dead.any()


@pytest.mark.parametrize("islands", [1, 2])
def test_slices_files_pages_and_the_audit_of_a_dead_problem(islands: int, tmp_path: Path) -> None:
    smc = SMC(twenty, 4, islands=islands, ess_threshold=1.0, max_plate_nesting=1, audit=True)
    pyro.set_rng_seed(4)
    whole = smc.run()
    assert whole.audit is not None and whole.audit.error == 0.0
    pyro.set_rng_seed(4)
    states = smc.iterate()
    next(states).save(tmp_path / "run.checkpoint")
    resumed = smc.resume(tmp_path / "run.checkpoint")
    assert torch.equal(resumed.log_weights, whole.log_weights) and torch.equal(resumed.dead, whole.dead)
    page = whole.to_html(tmp_path / "page.html").read_text()
    assert "NaN" not in page.split('id="data">', 1)[1].split("</script>")[0]
    assert whole.to_dataframe()["weight"].notna().all()


def test_a_failure_carries_the_last_barrier() -> None:
    def model() -> Tensor:
        x = pyro.sample("x", dist.Bernoulli(0.5))
        x = barrier(x)
        pyro.factor("never", torch.full_like(x, -math.inf))
        return x

    with pytest.raises(SMCFailed, match="all 5 particles have weight zero after site 'never': none") as caught:
        SMC(model, 5).run()
    partial_posterior = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert partial_posterior.num_barriers == 1 and not partial_posterior.dead


def test_nan_and_infinite_weights_are_errors_whatever_is_dead() -> None:
    class Spoiled(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return torch.where(torch.arange(20) == 3, self.loc, 0.0)

    def placed(spoiled: float) -> Tensor:
        with pyro.plate("problems", 20, dim=-1):
            x = pyro.sample("x", dist.Bernoulli(torch.full((20,), 0.5)))
            pyro.factor("wall", torch.where(torch.arange(20) == 7, -math.inf, x * 0.5))
            pyro.sample("spoiled", Spoiled(torch.full((20,), spoiled), 1.0, validate_args=False), obs=x)
        return x

    with pytest.raises(ValueError, match="site 'spoiled' gave a nan log-probability"):
        SMC(placed, 4, max_plate_nesting=1).run(math.nan)
    with pytest.raises(ValueError, match="site 'spoiled' gave an infinite log-weight"):
        SMC(placed, 4, max_plate_nesting=1).run(math.inf)
