"""PrefixWalk: its full transition matrix over trajectories, by enumeration of all choices of the real kernel."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import PrefixWalk, Trajectory, barrier
from tests.helpers.exact import Chain
from tests.helpers.exact_walks import DefinedWalk, transition_matrix
from tests.helpers.mutants import WRONG_WALKS
from tests.helpers.programs_that_stop import Particles, Silent, Stopping

EXACT = 1e-10
SCALES: list[list[float] | None] = [None, [0.3, -0.7, 1.1]]


def two_symbols(length: int, ends: bool, kind: type[Chain] = Chain, seed: int = 0) -> Chain:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    potentials = [0.2 + 2 * rand(3 ** (t + 1)) ** 2 for t in range(length)]
    return kind(rand(2).softmax(0), (2 * rand(2, 2)).softmax(-1), potentials, ends, last_barrier=False)


def imbalance(pi: Tensor, matrix: Tensor) -> float:
    """Largest violation of ``sum_y K(x, y) = 1``, of ``pi K = pi`` and of ``pi(x) K(x, y) = pi(y) K(y, x)``."""
    flow = pi[:, None] * matrix
    return max(float(error.abs().max()) for error in (matrix.sum(1) - 1, pi @ matrix - pi, flow - flow.T))


@pytest.mark.parametrize("log_scale", SCALES)
@pytest.mark.parametrize("kind", [Stopping, Silent, Chain])
def test_the_posterior_is_invariant(kind: type[Chain], log_scale: list[float] | None) -> None:
    """Windows of 1 to 4 steps; trajectories that end early, that are told of or not, or never; inner nodes of any scale."""
    for steps, ends in ((1, True), (2, True), (3, True), (4, kind is not Chain)):
        model = two_symbols(2, ends, kind, seed=steps)
        pi, matrix = transition_matrix(model, PrefixWalk, steps, log_scale)
        assert imbalance(pi, matrix) < EXACT
        torch.testing.assert_close(matrix, DefinedWalk(model, log_scale).matrix(steps), atol=EXACT, rtol=0.0)


def test_three_steps_deep() -> None:
    """What was drawn for one step of the walk is used by a later one."""
    model = two_symbols(3, True, Stopping)
    pi, matrix = transition_matrix(model, PrefixWalk, 4)
    assert imbalance(pi, matrix) < EXACT
    torch.testing.assert_close(matrix, DefinedWalk(model).matrix(4), atol=EXACT, rtol=0.0)


def test_the_walk_reaches_the_posterior() -> None:
    model = two_symbols(3, True, Stopping)
    pi = torch.tensor(list(model.paths().values()), dtype=torch.float64)
    reached = torch.linalg.matrix_power(DefinedWalk(model).matrix(8), 2000)
    torch.testing.assert_close(reached, (pi / pi.sum()).expand_as(reached), atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("name", WRONG_WALKS)
def test_rejects_wrong_walks(name: str) -> None:
    """A wrong walk moves a probability of at least 1e-4 in a window of four steps, a right one 1e-10."""
    model = two_symbols(2, True, Stopping)
    pi, matrix = transition_matrix(model, WRONG_WALKS[name], 4)
    assert float((pi @ matrix - pi).abs().max()) > 1e-4


def test_an_iteration_keeps_all_leaves_of_its_window() -> None:
    pyro.set_rng_seed(0)
    model = two_symbols(3, True, Stopping)
    kernel = PrefixWalk(model, steps=60, max_plate_nesting=1)
    start = kernel.start(5)
    posterior, moved = kernel.step(start, 5)
    assert posterior.num_particles > 3
    for name, value in start.items():
        assert torch.equal(posterior.sites[name][0], value)
    assert posterior.log_weights.exp().sum(0).max() <= 61  # steps spent at leaves, of 61 places of a window
    assert isinstance(moved, Trajectory) and moved.chain.acceptance_rate is not None
    torch.testing.assert_close(moved.chain.acceptance_rate, 1 - posterior.weights[0])


def test_a_first_execution_of_density_zero_is_left() -> None:
    def model() -> Tensor:
        x = pyro.sample("x", dist.Bernoulli(torch.tensor(0.2)))
        pyro.factor("wall", torch.where(x > 0, 0.0, -torch.inf))
        x = barrier(x)
        return pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))

    pyro.set_rng_seed(0)
    posterior = PrefixWalk(model, steps=50).run(4, warmup_steps=4)
    assert bool((posterior.sites["x"][posterior.weights > 0] == 1).all())


def test_weights_that_change_after_the_end_are_refused() -> None:
    def model() -> Any:
        done = torch.zeros((), dtype=torch.bool)
        for t in range(2):
            x = pyro.sample(f"x_{t}", dist.Bernoulli(torch.tensor(0.5)).mask(~done))
            x = torch.where(done, 0.0, x)
            state = barrier(Particles(x, x, done | (x == 1)))
            done = state.done
        pyro.factor("late", state.x)
        return state.x

    pyro.set_rng_seed(0)
    with pytest.raises(ValueError, match=r"needs weights that are complete where an execution is done.* or use SuffixMH"):
        PrefixWalk(model, steps=20).run(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"pilot": -1}, "pilot must be an integer of at least 0, got -1"),
        ({"max_plate_nesting": 1.5}, "max_plate_nesting must be an integer of at least 0, got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixWalk(two_symbols(2, True), **arguments)
