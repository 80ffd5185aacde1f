"""Waste-free SMC: unbiased evidence and expectations by enumeration, layout of its chains, errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import ParticleGibbs, SuffixMH, WasteFreeSMC, barrier
from tests.helpers.exact import Chain, chains, estimator_error, spiky
from tests.helpers.exact_waste_free import enumerate_waste_free
from tests.helpers.mutants import WRONG_CHAINS

EXACT = 1e-10
exactly = settings(max_examples=3, deadline=None, derandomize=True)


@pytest.mark.parametrize(("num_chains", "chain_length"), [(1, 2), (1, 3)])
@exactly
@given(model=chains(length=1), beta=st.sampled_from([0.1, 0.4, 0.8]))
def test_evidence_and_expectations_are_unbiased(num_chains: int, chain_length: int, model: Chain, beta: float) -> None:
    """``E[Z-hat sum W f] = Z E[f]``: first draws, resampling, offsets, cuts, proposals and acceptances of two stages are enumerated."""
    assert estimator_error(model, *enumerate_waste_free(model, num_chains, chain_length, [beta, 1.0])) < EXACT


@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual"])
@settings(exactly, max_examples=2)
@given(model=chains(length=1))
def test_three_stages_with_every_scheme(scheme: str, model: Chain) -> None:
    assert estimator_error(model, *enumerate_waste_free(model, 1, 2, [0.2, 0.6, 1.0], scheme=scheme, moving=2)) < EXACT


@settings(exactly, max_examples=2)
@given(model=chains(length=1))
def test_two_chains_are_unbiased(model: Chain) -> None:
    assert estimator_error(model, *enumerate_waste_free(model, 2, 2, [0.4, 1.0], moving=1)) < EXACT


@settings(exactly, max_examples=2)
@given(model=chains(length=2))
def test_two_steps_are_unbiased(model: Chain) -> None:
    assert estimator_error(model, *enumerate_waste_free(model, 1, 2, [0.4, 1.0], moving=1)) < EXACT


def chains_error(algorithm: type[WasteFreeSMC]) -> float:
    """Three states to a chain: two would be exchangeable, which hides where among them the resampled one stands."""
    models = [Chain(m.init, m.transition, m.potentials[:1], m.ends) for m in (spiky(ends=False, seed=seed) for seed in range(2))]
    return max(estimator_error(model, *enumerate_waste_free(model, 1, 3, [0.3, 1.0], algorithm=algorithm)) for model in models)


@pytest.mark.parametrize("wrong", WRONG_CHAINS)
def test_rejects_wrong_chains(wrong: type[WasteFreeSMC]) -> None:
    """The right engine is exact to 1e-10; these are off by 2.7 % (first ancestors) and 17 % (weighted starts) of the evidence."""
    assert chains_error(wrong) > 1e-2


def test_the_right_chains_pass_where_the_wrong_fail() -> None:
    assert chains_error(WasteFreeSMC) < EXACT


# Chains ----------------------------------------------------------------------------------------------------------------------------------


def problems() -> Tensor:
    with pyro.plate("problems", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
        pyro.factor("y", -((x - 1) ** 2))
        return barrier(x)


def test_particles_are_the_states_of_few_chains() -> None:
    """``[k, M]`` states: a chain's descend from one start, differ along it, and count the same."""
    pyro.set_rng_seed(0)
    seen = []
    posterior = WasteFreeSMC(problems, 24, chain_length=6, betas=[0.5, 1.0], max_plate_nesting=1, callback=seen.append).run()
    assert len(seen) == 2 and posterior.resampled.all()
    assert posterior.weights.allclose(torch.full((24, 3), 1 / 24, dtype=torch.float64))
    for ancestors in posterior.ancestors:
        assert (ancestors.view(6, 4, 3) == ancestors[:4]).all()
    before, after = seen[0].sites["x"], posterior.sites["x"]
    torch.testing.assert_close(after[:4], before.gather(0, posterior.ancestors[-1][:4]))
    torch.testing.assert_close((after.view(6, 4, 3).diff(dim=0) != 0).double().mean((0, 1)), posterior.move_rates[-1])
    torch.testing.assert_close(posterior.value, after)
    torch.testing.assert_close(posterior.log_likelihood, -((after - 1) ** 2))


def test_a_stage_moves_only_the_chains() -> None:
    """``N + S M (k - 1)`` executions are drawn, where TemperedSMC with as many moves would draw ``N + S N (k - 1)``."""
    drawn = []

    def counted() -> Tensor:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        drawn.append(x.numel())
        pyro.factor("y", -(x**2))
        return x

    WasteFreeSMC(counted, 12, chain_length=4, betas=[0.5, 1.0]).run()
    assert drawn == [12, *[2 * 3] * 3, *[2 * 3] * 3]  # a move runs the present and the proposed execution of each of 3 chains


class Walk:
    """What an execution of :func:`stopping` threads through its barriers."""

    def __init__(self, total: Tensor, done: Tensor) -> None:
        self.total, self.done = total, done

    def reorder(self, index: Tensor) -> Walk:
        return Walk(*(tensor.gather(0, index) for tensor in torch.broadcast_tensors(self.total, self.done)))


def stopping(population: int) -> Tensor:
    """Up to four symbols, each 0, 1, or 2, which ends an execution; an ended one has the symbol 2 only. Stops when all have ended."""
    probs = torch.tensor([0.15, 0.15, 0.7], dtype=torch.float64)
    with pyro.plate("population", population, dim=-1):
        walk = Walk(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool))
        for t in range(4):
            p = torch.where(walk.done[..., None], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), probs)
            x = pyro.sample(f"x_{t}", dist.Categorical(p))
            pyro.factor(f"y_{t}", torch.where(walk.done, 0.0, 0.4 * (x - 1.0)))
            walk = barrier(Walk(walk.total + torch.where(walk.done, 0.0, 0.4 * (x - 1.0)), walk.done | (x == 2)))
            if bool(walk.done.all()):
                break
        return walk.total


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=2)])
def test_executions_of_different_lengths_keep_their_values(kernel: Any) -> None:
    """A run that goes further than those before it adds sites, at which the earlier executions have the value of an ended one."""
    grown = 0
    for seed in range(30):
        pyro.set_rng_seed(seed)
        posterior = WasteFreeSMC(stopping, 4, chain_length=4, betas=[0.5, 1.0], kernel=kernel, max_plate_nesting=1).run(2)
        x = torch.stack([posterior.sites[f"x_{t}"] for t in range(4) if f"x_{t}" in posterior.sites])
        ended = (x == 2).cumsum(0) - (x == 2).long() > 0
        assert (x[ended] == 2).all()
        likelihood = torch.where(ended, 0.0, 0.4 * (x.double() - 1)).sum(0)
        torch.testing.assert_close(posterior.log_likelihood, likelihood)
        torch.testing.assert_close(posterior.value, likelihood)
        grown += len(x) > 1
    assert grown > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 10}, r"multiple of chain_length.*got 10 and 4; take num_particles=8"),
        ({"num_particles": 3}, r"got 3 and 4; take num_particles=4"),
        ({"num_particles": 0}, "num_particles must be an integer of at least 1, got 0"),
        ({"chain_length": 1}, "chain_length must be an integer of at least 2, got 1"),
        ({"betas": [0.5]}, "betas must be increasing powers"),
        ({"ess_threshold": 0.0}, r"ess_threshold must lie in \(0, 1\)"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WasteFreeSMC(problems, **{"num_particles": 8, **arguments})
