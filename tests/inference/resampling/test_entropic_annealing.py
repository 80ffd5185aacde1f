"""Resampling by other weights than the particles' own: unbiased for any selection, by enumeration; the formulas of annealing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import SMC, EntropicAnnealing, Weights, barrier
from tests.helpers.exact import Chain, chains, enumerate_sweep, estimator_error, spiky
from tests.helpers.mutants import DroppedResidual
from tests.helpers.population_mutants import WRONG_SELECTIONS

EXACT = 1e-10
exactly = settings(max_examples=4, deadline=None, derandomize=True)


def selecting(selection: Any) -> Any:
    def mutate(smc: SMC) -> None:
        smc.options = replace(smc.options, selection=selection)

    return mutate


@dataclass
class Arbitrary:
    """Any positive numbers: by step, by particle, and by the symbol that a particle is at."""

    numbers: list[int]
    keeps_target: bool = True

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        table = torch.tensor(self.numbers, dtype=torch.float64).log()
        particles = torch.arange(weights.num_particles)[:, None]
        return table[(5 * step + 3 * particles + state[0] + 1) % len(table)] + 0.5 * weights.log_weights


@pytest.mark.parametrize("ess_threshold", [0.8, 1.0])
@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual", "ssp"])
@exactly
@given(model=chains(), numbers=st.lists(st.integers(1, 9), min_size=7, max_size=7))
def test_any_selection_is_unbiased(scheme: str, ess_threshold: float, model: Chain, numbers: list[int]) -> None:
    """``E[Z-hat sum W f] = Z E[f]`` with ancestors drawn in proportion to arbitrary numbers: residual weights make up for them."""
    found = enumerate_sweep(model, 2, scheme, ess_threshold, mutate=selecting(Arbitrary(numbers)))
    assert estimator_error(model, *found) < EXACT


@pytest.mark.parametrize("rule", ["ess", "entropy", "base"])
@exactly
@given(model=chains())
def test_annealing_is_unbiased(rule: str, model: Chain) -> None:
    annealing = EntropicAnnealing(rule, num_steps=4, ess_threshold=1.0, early_phase=1.0)
    assert estimator_error(model, *enumerate_sweep(model, 2, "systematic", 1.0, mutate=selecting(annealing))) < EXACT


@exactly
@given(model=chains(length=2))
def test_three_particles_with_the_usual_settings(model: Chain) -> None:
    """Two are too many for an ESS below one half."""
    annealing = EntropicAnnealing(num_steps=5)
    assert estimator_error(model, *enumerate_sweep(model, 3, "systematic", 0.7, mutate=selecting(annealing))) < EXACT


@pytest.mark.parametrize("rule", ["ess", "entropy", "base"])
def test_rejects_dropped_residual_weights(rule: str) -> None:
    """The published form: more than 1 % of the evidence off, where the exact form is at it to 1e-10."""
    options = {"num_steps": 6, "ess_threshold": 1.0, "early_phase": 1.0}
    model = spiky(ends=False)
    right = enumerate_sweep(model, 2, "systematic", 1.0, mutate=selecting(EntropicAnnealing(rule, **options)))
    wrong = enumerate_sweep(model, 2, "systematic", 1.0, mutate=selecting(DroppedResidual(rule, **options)))
    assert estimator_error(model, *right) < EXACT
    assert estimator_error(model, *wrong) > 1e-2


def plain_temperature(rule: str, w: list[float], progress: float) -> float:
    total = sum(w)
    w = [value / total for value in w]
    share = 1 / sum(value**2 for value in w) / len(w)
    if not (share < 0.5 and progress < 0.5):
        return 1.0
    entropy = -sum(value * math.log(value) for value in w if value > 0) / math.log(len(w))
    raised = {
        "ess": (1 - progress) / share,
        "entropy": 1 / b if (b := entropy + (1 - entropy) * progress) > 0 else math.inf,
        "base": 2 - progress,
    }
    return max(1.0, raised[rule])


@settings(exactly, max_examples=60)
@given(
    rule=st.sampled_from(["ess", "entropy", "base"]),
    w=st.lists(st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0, 50.0]), min_size=3, max_size=8).filter(lambda w: sum(w) > 0),
    num_steps=st.integers(1, 9),
    data=st.data(),
)
def test_temperatures_by_plain_arithmetic(rule: str, w: list[float], num_steps: int, data: Any) -> None:
    """Every rule, at every step, against the definition; zero weights stay zero, the weights keep their order."""
    step = data.draw(st.integers(0, num_steps - 1))
    weights = Weights(torch.tensor([w, w[::-1]], dtype=torch.float64).T.log())
    annealing = EntropicAnnealing(rule, num_steps=num_steps)
    expected = plain_temperature(rule, w, (step + 1) / num_steps)
    found = annealing.temperature(weights, step)
    torch.testing.assert_close(found, torch.full((2,), expected, dtype=torch.float64))
    log_v = annealing(weights, None, step)
    assert ((log_v == -torch.inf) == (weights.log_weights == -torch.inf)).all() and not log_v.isnan().any()
    if math.isfinite(expected):
        difference = (log_v - weights.log_weights / expected)[torch.tensor(w) > 0, 0]
        torch.testing.assert_close(difference, difference[:1].expand_as(difference))


def test_annealing_keeps_more_particles() -> None:
    """What it is for: more distinct ancestors at the first step; the evidence agrees with that of plain resampling."""
    pyro.set_rng_seed(0)
    model = spiky()
    exact = sum(model.paths().values())
    distinct = {}
    for name, selection in (("plain", None), ("annealed", EntropicAnnealing(num_steps=10, ess_threshold=1.0))):
        posterior = SMC(model, 16, ess_threshold=1.0, selection=selection, max_plate_nesting=1).run(2000)
        distinct[name] = float((posterior.ancestors[0].sort(0).values.diff(dim=0) != 0).sum(0).double().mean())
        z_hat = posterior.log_evidence.exp()
        assert abs(z_hat.mean() - exact) < 4.9 * z_hat.std() / math.sqrt(len(z_hat))
    assert distinct["annealed"] > distinct["plain"] + 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rule": "es"}, "unknown rule 'es'; did you mean 'ess'"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"ess_threshold": 1.5}, r"ess_threshold must lie in \[0, 1\], got 1.5"),
        ({"early_phase": -0.1}, r"early_phase must lie in \[0, 1\], got -0.1"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropicAnnealing(**{"num_steps": 5, **kwargs})


# Selections that lose particles ----------------------------------------------------------------------------------------------------------


@dataclass
class Fixed:
    """The same log-weights at every barrier."""

    log_v: list[float]
    keeps_target: bool = True

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        return torch.tensor(self.log_v, dtype=torch.float64)


def two_particles() -> Tensor:
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    return barrier(x)


@pytest.mark.parametrize("keeps_target", [True, False])
@pytest.mark.parametrize(
    ("log_v", "message"),
    [
        ([0.0, -math.inf], r"selection Fixed gave particle 1 of positive weight the log-weight -inf at barrier 0: it must be finite"),
        ([-math.inf, -math.inf], "gave particle 0 of positive weight the log-weight -inf"),
        ([math.nan, 0.0], "gave particle 0 of positive weight the log-weight nan"),
        ([0.0, math.inf], "gave particle 1 of positive weight the log-weight inf"),
        ([0.0], r"selection Fixed gave log-weights of shape \(1,\), expected \(2,\)"),
    ],
)
def test_selections_must_not_lose_particles(log_v: list[float], message: str, keeps_target: bool) -> None:
    with pytest.raises(ValueError, match=message):
        SMC(two_particles, 2, ess_threshold=1.0, selection=Fixed(log_v, keeps_target)).run()


@dataclass
class Losing:
    """V = 0 for particles at symbol 0."""

    keeps_target: bool = True

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        return torch.where(state[0] == 0, -math.inf, weights.log_weights)


@pytest.mark.parametrize("name", WRONG_SELECTIONS)
def test_rejects_selections_that_lose_particles(name: str) -> None:
    """Unchecked, estimates are wrong by more than 10 % of the evidence."""

    def mutate(smc: SMC) -> None:
        selecting(Losing())(smc)
        smc.messenger = lambda: WRONG_SELECTIONS[name](smc.options)  # type: ignore[method-assign]

    model = replace(spiky(ends=False), potentials=spiky(ends=False).potentials[:2])
    try:
        error = estimator_error(model, *enumerate_sweep(model, 2, "multinomial", 1.0, mutate=mutate))
    except ValueError:
        error = 0.0
    assert error > 0.1
