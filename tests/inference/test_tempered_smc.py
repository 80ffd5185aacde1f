"""Tempered SMC: telescoping identities to rounding, unbiased evidence and expectations by enumeration, ladders, errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import (
    Enumeration,
    SuffixMH,
    TemperedPosterior,
    TemperedSMC,
    TemperMessenger,
    barrier,
)
from tests.helpers.exact import Chain, ForcedCategorical, Path, chains, estimator_error, simplex, spiky
from tests.helpers.exact_moves import enumerate_tempered
from tests.helpers.mutants import WRONG_LADDERS, WRONG_STAGES

EXACT = 1e-10
Z = 4.9  # two-sided 1e-6 per test
exactly = settings(max_examples=4, deadline=None, derandomize=True)

ladders = st.lists(st.integers(1, 99), min_size=0, max_size=5, unique=True).map(lambda inner: [b / 100 for b in sorted(inner)] + [1.0])


# The path from prior to posterior, exactly ----------------------------------------------------------------------------------------------


@st.composite
def hidden_markov_models(draw: Any) -> Callable[[], Tensor]:
    initial, transition, emission = draw(simplex(3)), torch.stack([draw(simplex(3)) for _ in range(3)]), draw(simplex(3)) * 2

    def model() -> Tensor:
        z = torch.zeros((), dtype=torch.long)
        for t in range(3):
            z = pyro.sample(f"z_{t}", dist.Categorical(initial if t == 0 else transition[z]))
            pyro.factor(f"y_{t}", (emission[z] * (1 + t * z)).log())
        return z

    return model


@settings(exactly, max_examples=10)
@given(model=hidden_markov_models(), ladder=ladders)
def test_tempered_targets_telescope(model: Callable[[], Tensor], ladder: list[float]) -> None:
    """``Z_b' / Z_b = E_b[L^(b' - b)]`` for every rung, to 1e-12; at b = 0 the prior, whose evidence is 1."""
    powers = [0.0, *ladder]
    runs = [Enumeration(TemperMessenger(likelihood=b)(model)).run() for b in powers]
    prior, posterior = runs[0], runs[-1]
    assert abs(float(prior.log_evidence)) < 1e-12
    log_likelihood = posterior.log_weights - prior.log_weights
    for low, high, before, after in zip(powers, powers[1:], runs, runs[1:], strict=False):
        expected = (before.weights.log() + (high - low) * log_likelihood).logsumexp(0)
        assert abs(float(after.log_evidence - before.log_evidence - expected)) < 1e-12


class Listed:
    """Proposes every path of a chain, each particle another one: a population without chance."""

    def __init__(self, model: Chain) -> None:
        self.model = model
        self.num_paths = model.num_symbols**model.length
        place = model.num_symbols ** torch.arange(model.length)[:, None, None]
        self.values = (torch.arange(self.num_paths)[:, None] // place) % model.num_symbols

    def __call__(self, site: Any) -> Any:
        if not site["name"].startswith("x"):
            return None
        v = self.model.num_symbols
        q = ForcedCategorical(torch.full((self.num_paths, 1, v), 1 / v, dtype=torch.float64), site["fn"].active)
        q.forced, q.path = self.values[int(site["name"].split("_")[1])], Path(1)
        return q


def complete(model: Chain, algorithm: type[TemperedSMC] = TemperedSMC, **kwargs: Any) -> TemperedSMC:
    listed = Listed(model)
    kernel = partial(SuffixMH, proposals=listed)
    return algorithm(model, listed.num_paths, kernel=kernel, num_moves=0, max_plate_nesting=1, **kwargs)


def tempered_evidence(model: Chain, beta: float) -> float:
    prior = Chain(model.init, model.transition, [torch.ones_like(g) for g in model.potentials], model.ends).paths()
    return sum(p * (model.paths()[path] / p) ** beta for path, p in prior.items())


@settings(exactly, max_examples=10)
@given(model=chains(), ladder=ladders)
def test_evidence_of_the_whole_path(model: Chain, ladder: list[float]) -> None:
    """All paths as particles, weighed against their proposals: the evidence at every rung of every ladder, to 1e-12."""
    posterior = complete(model, betas=ladder, ess_threshold=0.0).run(1)
    expected = torch.tensor([math.log(tempered_evidence(model, b)) for b in ladder], dtype=torch.float64)
    torch.testing.assert_close(posterior.log_evidences[:, 0], expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(posterior.log_evidence, posterior.log_evidences[-1])
    assert posterior.betas[:, 0].tolist() == pytest.approx(ladder)


# Unbiased, by enumeration of all randomness ----------------------------------------------------------------------------------------------


def shortened(model: Chain, length: int) -> Chain:
    return Chain(model.init, model.transition, model.potentials[:length], model.ends)


@pytest.mark.parametrize("ess_threshold", [0.0, 0.9, 1.0])
@exactly
@given(model=chains(length=1), beta=st.sampled_from([0.1, 0.4, 0.8]))
def test_evidence_and_expectations_are_unbiased(ess_threshold: float, model: Chain, beta: float) -> None:
    """``E[Z-hat sum W f] = Z E[f]``: first draws, resampling, cuts, proposals and acceptances of two stages are enumerated."""
    assert estimator_error(model, *enumerate_tempered(model, 2, [beta, 1.0], ess_threshold)) < EXACT


@pytest.mark.parametrize("ess_threshold", [0.9, 1.0])
@settings(exactly, max_examples=2)
@given(model=chains(length=2), beta=st.sampled_from([0.1, 0.4, 0.8]))
def test_two_steps_are_unbiased(ess_threshold: float, model: Chain, beta: float) -> None:
    assert estimator_error(model, *enumerate_tempered(model, 2, [beta, 1.0], ess_threshold, moving=1)) < EXACT


@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual"])
@settings(exactly, max_examples=2)
@given(model=chains(length=1))
def test_three_stages_with_every_scheme(scheme: str, model: Chain) -> None:
    assert estimator_error(model, *enumerate_tempered(model, 2, [0.2, 0.6, 1.0], 0.9, scheme=scheme, moving=2)) < EXACT


def stages_error(algorithm: type[TemperedSMC]) -> float:
    """The worst of several models and thresholds, so that every bug has a chance to show."""
    models = [shortened(spiky(ends=False, seed=seed), 1) for seed in range(2)]
    return max(
        estimator_error(model, *enumerate_tempered(model, 2, [0.3, 1.0], ess_threshold, algorithm=algorithm))
        for model in models
        for ess_threshold in (0.0, 1.0)
    )


@pytest.mark.parametrize("wrong", WRONG_STAGES)
def test_rejects_wrong_stages(wrong: type[TemperedSMC]) -> None:
    """The right engine is exact to 1e-10 where each of these is off by more than 1 % of the evidence."""
    assert stages_error(wrong) > 1e-2


def test_the_right_stages_pass_where_the_wrong_fail() -> None:
    assert stages_error(TemperedSMC) < EXACT


# Adaptive ladders ------------------------------------------------------------------------------------------------------------------------


def lopsided(scale: float = 4.0) -> Tensor:
    """Log-likelihoods with a long tail to one side, differently in three problems; the third is symmetric."""
    with pyro.plate("problems", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
        log_likelihood = torch.stack([-(scale * x[..., 0]).exp(), (x[..., 1] - 1).exp(), 2 * scale * x[..., 2]], -1)
        pyro.factor("y", log_likelihood)
        return barrier(x)


def ess_of(log_weights: Tensor) -> Tensor:
    w = (log_weights - log_weights.amax(0)).exp()
    return w.sum(0) ** 2 / (w**2).sum(0)


def ladder_of(algorithm: type[TemperedSMC], **kwargs: Any) -> tuple[TemperedPosterior, Tensor]:
    """A run, and the ESS that its weights and likelihoods before each later stage have at that stage's power: ``[S - 1, 3]``."""
    pyro.set_rng_seed(0)
    seen: list[TemperedPosterior] = []
    posterior = algorithm(lopsided, 500, max_plate_nesting=1, callback=seen.append, **kwargs).run()
    steps = [ess_of(a.log_weights + (b.betas[-1] - a.betas[-1]) * a.log_likelihood) for a, b in itertools.pairwise(seen)]
    return posterior, torch.stack(steps)


def test_adaptive_ladders_hit_the_target() -> None:
    """Every rung but the last has the target ESS, for each problem on its own, by plain arithmetic on what the callback saw."""
    posterior, ess = ladder_of(TemperedSMC, ess_threshold=0.5)
    betas = posterior.betas
    assert betas.shape == posterior.ess.shape == posterior.move_rates.shape == posterior.log_evidences.shape
    assert (betas[-1] == 1).all() and (betas.diff(dim=0) >= 0).all()
    assert (betas[0] != betas[0, 0]).any() and len(betas) >= 3
    torch.testing.assert_close(posterior.ess[1:], ess, rtol=1e-9, atol=0)
    for problem in range(3):
        inner = betas[:, problem] < 1
        torch.testing.assert_close(posterior.ess[inner, problem], torch.full((int(inner.sum()),), 250.0).double(), rtol=1e-6, atol=0)
        assert posterior.resampled[inner, problem].all()
    assert (posterior.ess[-1] >= 250 * (1 - 1e-6)).all()
    assert (posterior.move_rates[0] > 0.5).all() and (posterior.move_rates <= 1).all()


def miss(algorithm: type[TemperedSMC], **kwargs: Any) -> Tensor:
    """``[3]``: relative distance of the first rung's ESS from the target."""
    posterior, _ = ladder_of(algorithm, ess_threshold=0.5, **kwargs)
    return (posterior.ess[0] / 250 - 1).abs()


def wide(site: Any) -> Any:
    """Proposals that leave the particles with uneven weights before the first rung, of an ESS above the target."""
    return dist.Normal(torch.zeros(3, dtype=torch.float64), 1.6) if site["name"] == "x" else None


@pytest.mark.parametrize("wrong", WRONG_LADDERS)
def test_rejects_wrong_ladders(wrong: type[TemperedSMC]) -> None:
    """More than 10 % off the target, where the right bisection is at it to 1e-6."""
    kernel = partial(SuffixMH, proposals=wide)
    assert (miss(TemperedSMC, kernel=kernel) < 1e-6).all()
    found = miss(wrong, kernel=kernel)
    assert found[:2].max() > 0.1
    if wrong.__name__ == "FlippedBisection":
        assert miss(wrong)[2] < 0.06  # symmetric log-likelihoods hide the sign


def broad(site: Any) -> Any:
    return dist.Normal(torch.zeros(3, dtype=torch.float64), 5.0) if site["name"] == "x" else None


def test_uneven_first_weights_are_resampled_before_the_power_grows() -> None:
    pyro.set_rng_seed(0)
    posterior = TemperedSMC(lopsided, 500, kernel=partial(SuffixMH, proposals=broad), max_plate_nesting=1).run()
    assert (posterior.betas[0] == 0).all() and posterior.resampled[0].all() and (posterior.betas[-1] == 1).all()
