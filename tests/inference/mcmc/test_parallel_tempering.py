"""Parallel tempering: detailed balance of the real swaps, invariance of whole iterations by enumeration, chains against exact answers."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC
from torch import Tensor

from ppl_llm import reasoning
from ppl_llm.inference import ParallelTempering, ParticleGibbs, TemperMessenger, barrier
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers import reasoning as program
from tests.helpers.exact import Chain, chains, spiky
from tests.helpers.exact_moves import enumerate_swaps, joint_distribution, joint_index, path_index, tempered_distributions
from tests.helpers.mutants import WRONG_SWAPS

EXACT = 1e-12
exactly = settings(max_examples=5, deadline=None, derandomize=True)

powers = st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True).map(lambda inner: [b / 100 for b in sorted(inner)] + [1.0])


def shortened(model: Chain, length: int) -> Chain:
    return Chain(model.init, model.transition, model.potentials[:length], model.ends)


# Swaps -----------------------------------------------------------------------------------------------------------------------------------


def swap_matrix(algorithm: type[ParallelTempering], likelihood: Tensor, betas: list[float], turn: int) -> Tensor:
    """``[S^K, S^K]``: transition probabilities of the real swap over the states of all replicas.

    :param Tensor likelihood: ``[S]`` of the states of one replica.
    """
    size, replicas = len(likelihood), len(betas)
    sizes = [size] * replicas + [2] * (replicas - 1)
    grid = torch.tensor(list(itertools.product(*map(range, sizes)))).T
    states, accepted = grid[:replicas], grid[replicas:].bool()
    chain = algorithm(lambda columns: None, betas, max_plate_nesting=1)
    acceptance = chain.acceptance(likelihood.log()[states])
    after = states.gather(0, chain.exchange(accepted.clone(), turn).clamp(0, replicas - 1))
    ours = torch.arange(replicas - 1)[:, None] % 2 == turn
    probs = torch.where(ours, torch.where(accepted, acceptance, 1 - acceptance), 0.5).prod(0)
    matrix = torch.zeros(size**replicas, size**replicas, dtype=torch.float64)
    return matrix.index_put((joint_index(states, size), joint_index(after, size)), probs, accumulate=True)


def imbalance(algorithm: type[ParallelTempering], model: Chain, betas: list[float]) -> float:
    """Largest ``|pi_i S_ij - pi_j S_ji|`` over both turns, with pi the product of the tempered targets."""
    distributions = tempered_distributions(model, betas)
    likelihood = tempered_distributions(model, [1.0])[0] / tempered_distributions(model, [0.0])[0]  # up to a constant, which cancels
    size, replicas = distributions.shape[1], len(betas)
    states = torch.tensor(list(itertools.product(range(size), repeat=replicas))).T
    pi = torch.zeros(size**replicas, dtype=torch.float64).index_put((joint_index(states, size),), joint_distribution(distributions, states))
    worst = 0.0
    for turn in (0, 1):
        matrix = swap_matrix(algorithm, likelihood, betas, turn)
        flow = pi[:, None] * matrix
        worst = max(worst, float((flow - flow.T).abs().max()), float((matrix.sum(1) - 1).abs().max()))
    return worst


@exactly
@given(model=chains(length=2), betas=powers)
def test_swaps_are_in_detailed_balance(model: Chain, betas: list[float]) -> None:
    """Two and three replicas, over all joint states: ``pi_i S_ij`` is symmetric to 1e-12."""
    assert imbalance(ParallelTempering, model, betas) < EXACT
    assert imbalance(ParallelTempering, model, betas[::-1]) < EXACT


def test_swaps_with_impossible_states() -> None:
    """A state of likelihood zero may live in the replica at power 0 and nowhere else; two such states stay in place."""
    likelihood = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    distributions = torch.stack([p, p * likelihood**0.5, p * likelihood])
    matrix = swap_matrix(ParallelTempering, likelihood, [0.0, 0.5, 1.0], 0)
    states = torch.tensor(list(itertools.product(range(3), repeat=3))).T
    pi = torch.zeros(27, dtype=torch.float64).index_put((joint_index(states, 3),), joint_distribution(distributions, states))
    flow = pi[:, None] * matrix
    assert float((flow - flow.T).abs().max()) < EXACT
    torch.testing.assert_close(matrix.sum(1), torch.ones(27, dtype=torch.float64))
    assert matrix[0, 0] == 1.0


@pytest.mark.parametrize("wrong", WRONG_SWAPS)
def test_rejects_wrong_swaps(wrong: type[ParallelTempering]) -> None:
    """Off by more than 0.005 in a probability flow (or a state lost), where the right swaps balance to 1e-12."""
    model, betas = shortened(spiky(ends=False), 2), [0.1, 0.6, 1.0]
    assert imbalance(ParallelTempering, model, betas) < EXACT
    assert imbalance(wrong, model, betas) > 5e-3


# Whole iterations ------------------------------------------------------------------------------------------------------------------------


def drift(model: Chain, betas: list[float], turn: int, algorithm: type[ParallelTempering] = ParallelTempering) -> float:
    """Largest ``|pi K - pi|`` of one iteration over the joint states of all replicas."""
    probs, which, after = enumerate_swaps(model, algorithm, betas, turn)
    distributions = tempered_distributions(model, betas)
    size = distributions.shape[1]
    states = torch.tensor(list(itertools.product(range(size), repeat=len(betas)))).T
    pi = torch.zeros(size ** len(betas), dtype=torch.float64).index_put(
        (joint_index(states, size),), joint_distribution(distributions, states)
    )
    mass = joint_distribution(distributions, which) * probs
    moved = torch.zeros_like(pi).index_add_(0, joint_index(path_index(model, after), size), mass)
    return float((moved - pi).abs().max())


@exactly
@given(model=chains(length=2), beta=st.sampled_from([0.0, 0.3, 0.7]))
def test_two_replicas_keep_their_joint_target(model: Chain, beta: float) -> None:
    """Cuts, proposals, acceptances and swaps of the real code enumerated, from every joint state: ``pi K = pi`` to 1e-12."""
    assert drift(model, [1.0, beta], turn=0) < EXACT


@pytest.mark.parametrize("turn", [0, 1])
@exactly
@given(model=chains(length=1), betas=st.sampled_from([[0.0, 0.4, 1.0], [1.0, 0.8, 0.2]]))
def test_three_replicas_keep_their_joint_target(turn: int, model: Chain, betas: list[float]) -> None:
    assert drift(model, betas, turn) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
def test_three_replicas_of_two_steps(turn: int) -> None:
    """A million columns."""
    assert drift(shortened(spiky(ends=False), 2), [0.0, 0.4, 1.0], turn) < EXACT


def test_an_iteration_with_wrong_swaps_drifts() -> None:
    model = shortened(spiky(ends=False), 1)
    assert drift(model, [0.1, 0.6, 1.0], 0) < EXACT
    assert drift(model, [0.1, 0.6, 1.0], 0, WRONG_SWAPS[0]) > 1e-3
    assert drift(model, [0.1, 0.6, 1.0], 0, WRONG_SWAPS[1]) > 1e-3


# Chains ----------------------------------------------------------------------------------------------------------------------------------


def early_exit(likelihood: float = 1.0, prior: float = 1.0) -> Any:
    model = reasoning(
        program.LM, program.PRM, stop=";", max_tokens=program.MAX_TOKENS, max_steps=program.MAX_STEPS, temperature=program.TEMPERATURE
    )
    return lambda: TemperMessenger(likelihood, prior)(model)("a")


@pytest.mark.parametrize("kernel", [None, partial(ParticleGibbs, num_particles=3)])
@pytest.mark.parametrize(("likelihood", "prior"), [(1.0, 1.0), (3.0, 2.0)])
def test_executions_of_different_length(likelihood: float, prior: float, kernel: Any) -> None:
    """150 chains in a batch, 20 iterations each after 20: z-tests of the first token and the number of steps, false alarm 1e-6 each."""
    pyro.set_rng_seed(0)
    model = replicate(early_exit(likelihood, prior), 150, 0)
    chain = ParallelTempering(model, [0.2, 0.6, 1.0], *([kernel] if kernel else []), max_plate_nesting=1)
    posterior = chain.run(20, warmup_steps=20)
    rows = [
        (tokens[0] == 1, steps, p**prior * math.prod(1 / (1 + math.exp(-v)) for v in z) ** likelihood)
        for tokens, steps, p, z, _ in program.trajectories()
    ]
    mass = torch.tensor([m for _, _, m in rows], dtype=torch.float64)
    for name, value in (("first", 0), ("steps", 1)):
        exact = (torch.tensor([float(row[value]) for row in rows], dtype=torch.float64) * mass).sum() / mass.sum()
        observed = posterior.sites["step_0"][..., 0] == 1 if name == "first" else posterior.lengths
        mean = (posterior.weights * observed).sum(0)
        error = mean.std() / math.sqrt(len(mean))
        assert abs(mean.mean() - exact) < 4.9 * error, name
        assert error < 0.03, name
    assert posterior.swap_rates.shape == (2, 150)
    assert posterior.num_particles == 20 * (3 if kernel else 2)


def two_modes() -> Tensor:
    """Steps that must agree: one at a time they cannot change."""
    x = torch.stack([pyro.sample(f"x_{t}", dist.Bernoulli(0.5)) for t in range(6)])
    pyro.factor("agree", -3.0 * (x != x[:1]).sum(0) + torch.where(x[0] > 0, math.log(3.0), 0.0))
    return barrier(x[0])


def test_swap_rates_are_those_of_the_targets() -> None:
    """Mean acceptance over independent chains at stationarity against its expectation by sums (false alarm 1e-6)."""
    pyro.set_rng_seed(1)
    model, betas = shortened(spiky(ends=False), 2), [0.2, 1.0]
    distributions = tempered_distributions(model, betas)
    likelihood = (distributions[1] / distributions[0]).log() / (betas[1] - betas[0])
    ratio = ((betas[0] - betas[1]) * (likelihood[None, :] - likelihood[:, None])).exp().clamp(max=1.0)
    exact = float((distributions[0][:, None] * distributions[1][None, :] * ratio).sum())
    rates = ParallelTempering(model, betas, max_plate_nesting=1).run(10, 4000, warmup_steps=30).swap_rates
    assert rates.shape == (1, 4000)
    assert abs(float(rates.mean()) - exact) < 4.9 * float(rates.std()) / math.sqrt(4000)
    assert float(rates.std()) / math.sqrt(4000) < 0.005


def test_pyro_drives_all_replicas() -> None:
    pyro.set_rng_seed(2)
    kernel = ParallelTempering(two_modes, [0.0, 0.4, 1.0])
    chain = MCMC(kernel, num_samples=300, warmup_steps=10, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()
    assert samples["x_0"].shape == (300, 3)
    assert abs(float(samples["x_0"][:, 2].mean()) - 0.75) < 0.25 and abs(float(samples["x_0"][:, 0].mean()) - 0.5) < 0.15
    assert len(kernel.diagnostics()["swap rates"]) == 2


def test_results_and_errors() -> None:
    pyro.set_rng_seed(3)
    posterior = ParallelTempering(two_modes, [1.0, 0.4, 0.0]).run(50)
    assert posterior.betas == (1.0, 0.4, 0.0) and posterior.swap_rates.shape == (2,)
    assert repr(posterior).startswith("ParallelTemperingPosterior(50 iterations, 3 replicas, swap rates 0.")
    assert posterior.num_particles == 100
    with pytest.raises(ValueError, match="gives no evidence; run SMC, TemperedSMC or Importance"):
        _ = posterior.log_evidence
    for betas in ([1.0], [0.5, 0.2], [0.0, 0.5, 0.5, 1.0], [0.0, 1.0, 0.5], [-0.1, 1.0], "adaptive", [math.nan, 1.0]):
        with pytest.raises(ValueError, match="betas must be"):
            ParallelTempering(two_modes, betas)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its state is more than a trajectory"):
        ParallelTempering(two_modes, [0.0, 1.0], partial(ParallelTempering, betas=[0.0, 1.0]))
    calls = []

    def stops() -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return two_modes()

    with pytest.raises(KeyboardInterrupt) as caught:
        ParallelTempering(stops, [0.0, 1.0]).run(100, warmup_steps=2)
    partial_posterior = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert len(partial_posterior.iterations) == 4 and partial_posterior.swap_rates.shape == (1,)
