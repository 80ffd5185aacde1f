"""Small models of every kind with exact answers: the rows of tests/inference/test_matrix.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_llm.inference import barrier
from tests.helpers import reasoning
from tests.helpers.exact import spiky


@dataclass(frozen=True)
class Known:
    """A model and the exact answer.

    :ivar program: the model, without arguments.
    :ivar int nesting: its own plates, all of them independent problems.
    :ivar statistic: from latent sites ``[..., *plates, *event]`` to the named quantity ``[..., *plates, K]``.
    :ivar str quantity: what the K numbers are.
    :ivar Tensor evidence: ``[*plates]``.
    :ivar Tensor mean: ``[*plates, K]`` posterior mean of the statistic.
    :ivar bool enumerable: whether every latent site has a finite support, and no plates.
    """

    program: Callable[[], Any]
    statistic: Callable[[Mapping[str, Tensor]], Tensor]
    quantity: str
    evidence: Tensor
    mean: Tensor
    nesting: int = 0
    enumerable: bool = True


def one_hot(value: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(value, size).double()


def weighted(paths: Iterable[tuple[float, dict[str, Any]]], statistic: Callable[[Mapping[str, Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """Evidence and mean of the statistic over (unnormalised mass, sites) of every path."""
    masses, sites = zip(*paths, strict=True)
    mass = torch.tensor(masses, dtype=torch.float64)
    stacked = {name: torch.stack([torch.as_tensor(path[name]) for path in sites]) for name in sites[0]}
    return mass.sum(), (mass / mass.sum()) @ statistic(stacked)


# A hidden Markov model -------------------------------------------------------------------------------------------------------------------

INITIAL = torch.tensor([0.6, 0.3, 0.1])
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])
EMISSION = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])


def hidden_markov(observed: Tensor) -> Tensor:
    """
    :param Tensor observed: ``[T, *plates]``.
    """
    z = torch.zeros((), dtype=torch.long)
    for t, y in enumerate(observed):
        z = pyro.sample(f"z_{t}", dist.Categorical(INITIAL if t == 0 else TRANSITION[z]))
        pyro.sample(f"y_{t}", dist.Categorical(EMISSION[z]), obs=y)
        z = barrier(z)
    return z


def forward_backward(observed: list[int]) -> tuple[Tensor, Tensor]:
    """Evidence, and the posterior of the first and of the last state one after the other."""
    transition, emission = TRANSITION.double(), EMISSION.double()
    forward = INITIAL.double() * emission[:, observed[0]]
    first = torch.diag(forward)  # [first state, present state]
    for y in observed[1:]:
        forward, first = (forward @ transition) * emission[:, y], (first @ transition) * emission[:, y]
    return forward.sum(), torch.cat([first.sum(1), forward]) / forward.sum()


def first_and_last(sites: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([one_hot(sites["z_0"], 3), one_hot(sites["z_3"], 3)], -1)


SEQUENCES = [[0, 2, 1, 1], [2, 2, 0, 1], [1, 0, 0, 2]]


def hmm() -> Known:
    evidence, mean = forward_backward(SEQUENCES[0])
    data = torch.tensor(SEQUENCES[0])
    return Known(lambda: hidden_markov(data), first_and_last, "first and last state", evidence, mean)


def problems() -> Known:
    """Three sequences in a plate, each with a posterior of its own."""

    def program() -> Tensor:
        with pyro.plate("problems", 3, dim=-1):
            return hidden_markov(torch.tensor(SEQUENCES).T)

    evidence, mean = (torch.stack(parts) for parts in zip(*map(forward_backward, SEQUENCES), strict=True))
    return Known(program, first_and_last, "first and last state of each", evidence, mean, nesting=1, enumerable=False)


# Language model and rewards given by tables; particles finish early -----------------------------------------------------------------------


def tabular() -> Known:
    def statistic(sites: Mapping[str, Tensor]) -> Tensor:
        steps = torch.stack([sites[f"step_{t}"][..., 0] >= 0 for t in range(reasoning.MAX_STEPS)]).sum(0)
        return torch.cat([one_hot(steps - 1, reasoning.MAX_STEPS), one_hot(sites["step_0"][..., 0], 4)], -1)

    def paths() -> Iterable[tuple[float, dict[str, Any]]]:
        for tokens, steps, p, scores, _ in reasoning.trajectories():
            first = {f"step_{t}": torch.tensor([tokens[0] if t < steps else -1]) for t in range(reasoning.MAX_STEPS)}
            yield p * math.prod(1 / (1 + math.exp(-s)) for s in scores), first

    evidence, mean = weighted(paths(), statistic)
    return Known(lambda: reasoning.solve("a"), statistic, "number of steps, first token", evidence, mean)


# Two latent sites per step ---------------------------------------------------------------------------------------------------------------

MOOD = torch.tensor([0.3, 0.7, 0.5])  # of the good mood, given the last word
WORD = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
WORTH = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.7, 0.3]])


def two_sites() -> Known:
    def program() -> Tensor:
        word = torch.zeros((), dtype=torch.long)
        for t in range(3):
            mood = pyro.sample(f"mood_{t}", dist.Bernoulli(MOOD[word])).long()
            word = pyro.sample(f"word_{t}", dist.Categorical(WORD[mood]))
            pyro.sample(f"worth_{t}", dist.Bernoulli(WORTH[mood, word]), obs=torch.tensor(1.0))
            word = barrier(word)
        return word

    def statistic(sites: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([sites["mood_0"].double()[..., None], one_hot(sites["word_2"], 3)], -1)

    def paths() -> Iterable[tuple[float, dict[str, Any]]]:
        for moods in itertools.product((0, 1), repeat=3):
            for words in itertools.product((0, 1, 2), repeat=3):
                mass = 1.0
                for mood, word, last in zip(moods, words, (0, *words), strict=False):
                    good = float(MOOD[last])
                    mass *= (good if mood else 1 - good) * float(WORD[mood, word] * WORTH[mood, word])
                yield mass, {"mood_0": moods[0], "word_2": words[2]}

    evidence, mean = weighted(paths(), statistic)
    return Known(program, statistic, "first mood, last word", evidence, mean)


# A continuous state ----------------------------------------------------------------------------------------------------------------------

SERIES = torch.tensor([0.5, -1.0, 1.5, 0.3])


def linear_gaussian() -> Known:
    def program() -> Tensor:
        z = torch.zeros(())
        for t, y in enumerate(SERIES):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 0.7), obs=y)
            z = barrier(z)
        return z

    def statistic(sites: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([sites["z_3"], sites["z_3"].square()], -1).double()

    def normal(variance: float) -> Any:
        return dist.MultivariateNormal(torch.zeros(1).double(), covariance_matrix=torch.eye(1).double() * variance)

    # Pyro draws a state before the first transition; one of variance zero is the program's zero.
    oracle = dist.GaussianHMM(normal(1e-12), torch.eye(1).double() * 0.9, normal(1.0), torch.eye(1).double(), normal(0.49), duration=4)
    last = oracle.filter(SERIES[:, None].double())
    mean, variance = last.mean, last.covariance_matrix[0]
    exact = torch.cat([mean, mean.square() + variance])
    evidence = oracle.log_prob(SERIES[:, None].double()).exp()
    return Known(program, statistic, "mean and square of the last state", evidence, exact, enumerable=False)


# A reward of the whole prefix ------------------------------------------------------------------------------------------------------------


def prefix() -> Known:
    chain = spiky()

    def statistic(sites: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([one_hot(sites["x_0"], 2), one_hot(sites["x_2"] + 1, 3)], -1)

    evidence, mean = weighted(((mass, {f"x_{t}": x for t, x in enumerate(path)}) for path, mass in chain.paths().items()), statistic)
    return Known(chain.walk, statistic, "first and last symbol", evidence, mean)


# A parameter shared by all steps ---------------------------------------------------------------------------------------------------------

MARKS = torch.tensor([-1.0, 1.5])


def calibrated() -> Known:
    """Log-odds of the rewards times an unknown factor."""
    prior = dist.Gamma(torch.tensor(3.0), torch.tensor(2.0))

    def program() -> Tensor:
        factor = pyro.sample("factor", prior)
        for t in range(3):
            right = pyro.sample(f"right_{t}", dist.Bernoulli(torch.tensor(0.6)))
            pyro.sample(f"accept_{t}", dist.Bernoulli(logits=factor * MARKS[right.long()]), obs=torch.tensor(float(t != 1)))
            factor = barrier(factor)
        return factor

    def statistic(sites: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([sites["factor"], sites["right_0"], sites["right_1"]], -1).double()

    # Quadrature over the factor (midpoints), sums over the rest: the steps are independent given it.
    grid = (torch.arange(200_000).double() + 0.5) * 1e-4
    accepted = (grid[:, None] * MARKS.double()).sigmoid() * torch.tensor([0.4, 0.6]).double()  # [grid, wrong or right]
    refused = torch.tensor([0.4, 0.6]).double() - accepted
    density = prior.log_prob(grid.float()).double().exp() * 1e-4
    joint = density * accepted.sum(-1) ** 2 * refused.sum(-1)
    evidence = joint.sum()
    right = [
        (density * part).sum() for part in (accepted[:, 1] * accepted.sum(-1) * refused.sum(-1), accepted.sum(-1) ** 2 * refused[:, 1])
    ]
    mean = torch.stack([(joint * grid).sum(), *right]) / evidence
    return Known(program, statistic, "the factor, first and second mark", evidence, mean, enumerable=False)


MODELS: dict[str, Callable[[], Known]] = {
    "hmm": hmm,
    "tabular": tabular,
    "two sites": two_sites,
    "problems": problems,
    "linear gaussian": linear_gaussian,
    "prefix": prefix,
    "calibrated": calibrated,
}
