"""Particle Gibbs on programs with plates, proposals, powers and continuous sites: chains from exact draws keep their distribution.

Every test is one batch of chains in a plate, each from a draw of the exact posterior, compared with that posterior after a few sweeps;
false alarm 1e-6 each.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_llm import LLMStep
from ppl_llm.inference import ParticleGibbs, TemperMessenger, Trajectory, barrier
from ppl_llm.inference.handlers.ancestor_messenger import AncestorMessenger
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers.exact import PAD
from tests.helpers.mutants import WithoutSuffix
from tests.helpers.reasoning import MAX_STEPS, MAX_TOKENS, solve, trajectories
from tests.inference.mcmc.test_suffix_mh import bound, step_values
from tests.inference.test_smc_exact import spiky


def reasoning_plate(replicates: int) -> Any:
    with pyro.plate("replicates", replicates, dim=-1):
        return solve(["a"] * replicates)


def hotter(site: Any) -> Any:
    return LLMStep(site["fn"].context, ";", MAX_TOKENS, temperature=2.0) if site["name"].startswith("step") else None


def reasoning_chi2(kernel: ParticleGibbs, replicates: int, sweeps: int, powers: tuple[float, float]) -> tuple[float, int, float]:
    """Chi-square over trajectories, its degrees of freedom, and how many chains changed their first step."""
    likelihood, prior = powers
    log_mass = [
        prior * math.log(p) + likelihood * float(logsigmoid(torch.tensor(z, dtype=torch.float64)).sum()) for _, _, p, z, _ in trajectories()
    ]
    pi = torch.tensor(log_mass, dtype=torch.float64).softmax(0)
    drawn = torch.multinomial(pi, replicates, replacement=True)
    steps = torch.stack([step_values(tokens) for tokens, *_ in trajectories()])
    state = Trajectory({f"step_{t}": steps[drawn, t] for t in range(MAX_STEPS)})
    for _ in range(sweeps):
        _, state = kernel.step(state, replicates)
    number = {tokens: i for i, (tokens, *_) in enumerate(trajectories())}
    rows = torch.stack([state[f"step_{t}"] for t in range(MAX_STEPS)], 1).flatten(1).tolist()
    found = [number.get(tuple(v for v in row if v != PAD)) for row in rows]
    if None in found:  # what the program cannot write
        return math.inf, len(pi), math.nan
    counts = torch.bincount(torch.tensor(found), minlength=len(pi))
    expected = pi * replicates
    large = expected >= 10
    chi2 = ((counts - expected) ** 2 / expected)[large].sum() + (counts - expected)[~large].sum() ** 2 / expected[~large].sum()
    changed = (state["step_0"] != steps[drawn, 0]).any(-1).double().mean()
    return float(chi2), int(large.sum()), float(changed)


@pytest.mark.parametrize("ancestor_sampling", [False, True])
@pytest.mark.parametrize("proposals", [None, hotter])
def test_reasoning(proposals: Any, ancestor_sampling: bool) -> None:
    """References of one to three steps; the program stops when all are done."""
    pyro.set_rng_seed(0)
    kernel = ParticleGibbs(
        reasoning_plate,
        2,
        resampler="systematic",
        ess_threshold=1.0,
        ancestor_sampling=ancestor_sampling,
        proposals=proposals,
        max_plate_nesting=1,
    )
    chi2, df, _ = reasoning_chi2(kernel, 3000, 2, (1.0, 1.0))
    assert df > 25 and chi2 < bound(df)


def test_reasoning_rejects_ancestors_without_the_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    pyro.set_rng_seed(0)
    kernel = ParticleGibbs(reasoning_plate, 2, ess_threshold=1.0, ancestor_sampling=True, max_plate_nesting=1)
    monkeypatch.setattr(AncestorMessenger, "ancestor_weights", WithoutSuffix.ancestor_weights)
    chi2, df, _ = reasoning_chi2(kernel, 3000, 2, (1.0, 1.0))
    assert chi2 > 2 * bound(df)


@pytest.mark.parametrize("powers", [(0.4, 1.0), (1.0, 1.5)])
def test_tempered_reasoning(powers: tuple[float, float]) -> None:
    pyro.set_rng_seed(1)
    tempered = TemperMessenger(*powers)(reasoning_plate)
    kernel = ParticleGibbs(tempered, 2, ess_threshold=1.0, ancestor_sampling=True, max_plate_nesting=1)
    chi2, df, _ = reasoning_chi2(kernel, 3000, 2, powers)
    assert df > 20 and chi2 < bound(df)


def test_ancestors_are_scored_within_their_own_problem() -> None:
    """Several problems in a plate: each has ancestors, references and lengths of its own."""
    pyro.set_rng_seed(2)

    def problems(texts: list[str]) -> Any:
        with pyro.plate("problems", len(texts), dim=-1):
            return solve(texts)

    kernel = ParticleGibbs(problems, 4, ess_threshold=1.0, ancestor_sampling=True, max_plate_nesting=1)
    posterior = kernel.run(4, ["a", "b", "ba"])
    assert posterior.log_weights.shape == (16, 3)
    assert len(posterior.answers()) == 3


# A plate whose elements share a latent site: one population
def shared_switch() -> Tensor:
    """A switch, and two units that follow it, each with a symbol a step; rewards for units that agree."""
    switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.3).double()))
    with pyro.plate("units", 2, dim=-1):
        x = switch
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Bernoulli(0.2 + 0.6 * x))
            pyro.factor(f"y_{t}", 1.5 * (x == t % 2).double() - 0.7 * (x != switch).double())
            switch, x = barrier((switch, x))
    return x


def switch_distribution() -> Tensor:
    """``[2] * 7`` posterior of switch and of both units' symbols, in plain Python."""
    table = torch.zeros([2] * 7, dtype=torch.float64)
    for path in itertools.product((0, 1), repeat=7):
        log_p = math.log(0.3 if path[0] else 0.7)
        for unit in range(2):
            before = path[0]
            for t in range(3):
                x = path[1 + 2 * t + unit]
                p = 0.2 + 0.6 * before
                log_p += math.log(p if x else 1 - p) + 1.5 * (x == t % 2) - 0.7 * (x != path[0])
                before = x
        table[path] = math.exp(log_p)
    return table / table.sum()


@pytest.mark.parametrize("ancestor_sampling", [False, True])
def test_dependent_plate(ancestor_sampling: bool) -> None:
    pyro.set_rng_seed(3)
    replicates = 10_000
    pi = switch_distribution().flatten()
    drawn = torch.multinomial(pi, replicates, replacement=True)
    bits = torch.stack([(drawn >> place) & 1 for place in range(6, -1, -1)]).double()  # [7, R]
    state = Trajectory({"switch": bits[0, :, None], **{f"x_{t}": bits[1 + 2 * t : 3 + 2 * t].T for t in range(3)}})
    kernel = ParticleGibbs(
        replicate(shared_switch, replicates, 1), 2, ess_threshold=1.0, ancestor_sampling=ancestor_sampling, max_plate_nesting=2
    )
    for _ in range(2):
        posterior, state = kernel.step(state)
    assert posterior.log_weights.shape == (2, replicates)
    code = state["switch"][:, 0].long()
    for t, unit in itertools.product(range(3), range(2)):
        code = 2 * code + state[f"x_{t}"][:, unit].long()
    counts, expected = torch.bincount(code, minlength=128), replicates * pi
    large = expected >= 10
    chi2 = float(((counts - expected) ** 2 / expected)[large].sum())
    assert int(large.sum()) > 25 and chi2 < bound(int(large.sum()))


# Continuous states
OBSERVATIONS = (0.5, -1.0, 2.0, 0.3)


def walk() -> Tensor:
    z = torch.zeros((), dtype=torch.float64)
    for t, y in enumerate(OBSERVATIONS):
        z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=torch.tensor(y))
        z = barrier(z)
    return z


def smoothing_distribution() -> tuple[Tensor, Tensor]:
    """Mean and covariance of all states given all observations, by linear algebra."""
    steps = torch.eye(4, dtype=torch.float64) - 0.9 * torch.diag(torch.ones(3, dtype=torch.float64), -1)
    precision = steps.T @ steps + 4 * torch.eye(4, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    return covariance @ (4 * torch.tensor(OBSERVATIONS, dtype=torch.float64)), covariance


def test_continuous_states_against_the_smoother() -> None:
    """Means and covariances of 10 000 chains after two sweeps, and ancestor sampling moves early states more often."""
    pyro.set_rng_seed(4)
    replicates = 10_000
    mean, covariance = smoothing_distribution()
    start = torch.distributions.MultivariateNormal(mean, covariance).sample((replicates,))
    moved = {}
    for ancestor_sampling in (False, True):
        kernel = ParticleGibbs(
            replicate(walk, replicates, 0), 2, ess_threshold=1.0, ancestor_sampling=ancestor_sampling, max_plate_nesting=1
        )
        state = Trajectory({f"z_{t}": start[:, t] for t in range(4)})
        for _ in range(2):
            _, state = kernel.step(state)
        z = torch.stack([state[f"z_{t}"] for t in range(4)], -1)
        error = (z.mean(0) - mean) / (covariance.diag() / replicates).sqrt()
        assert float(error.abs().max()) < 5.3  # four comparisons
        spread = (z.T.cov() - covariance) / (covariance.diag()[:, None] * covariance.diag() + covariance**2).sqrt() * math.sqrt(replicates)
        assert float(spread.abs().max()) < 5.6  # ten
        moved[ancestor_sampling] = float((z[:, 0] != start[:, 0]).double().mean())
    assert moved[True] > moved[False] + 0.1


def test_suffixes_outside_a_foreign_support_are_impossible() -> None:
    """A site whose support depends on the past: Uniform(z, z + 1) can rarely continue from another z."""
    pyro.set_rng_seed(5)

    def steps() -> Tensor:
        z = torch.zeros((), dtype=torch.float64)
        for t in range(3):
            z = pyro.sample(f"z_{t}", dist.Uniform(z, z + 1))
            pyro.factor(f"y_{t}", -z)
            z = barrier(z)
        return z

    posterior = ParticleGibbs(steps, 4, ess_threshold=1.0, ancestor_sampling=True).run(20)
    z = torch.stack([posterior.sites[f"z_{t}"] for t in range(3)])
    assert ((z.diff(dim=0) >= 0) & (z.diff(dim=0) <= 1)).all()


# Several references
def test_references_side_by_side() -> None:
    """K filters of N particles in one batch; each keeps its distribution, and all K N particles are pooled with proper answers."""
    pyro.set_rng_seed(6)
    kernel = ParticleGibbs(solve, 4, ancestor_sampling=True, num_references=3)
    posterior = kernel.run(5, "a")
    assert posterior.num_particles == 5 * 3 * 4 and len(posterior.iterations) == 5
    assert posterior.iterations[0].num_particles == 12 and len(posterior.value) == 60
    assert posterior.answers().prob(None) == pytest.approx(1.0)
    torch.testing.assert_close(posterior.weights.view(5, 3, 4).sum(-1), torch.full((5, 3), 1 / 15, dtype=torch.float64))
    first = posterior.iterations[0]
    assert first.sites["step_0"].shape == (12, MAX_TOKENS)
    with pytest.raises(ValueError, match="num_references must be an integer of at least 1, got 0"):
        ParticleGibbs(solve, 4, num_references=0)


def test_references_side_by_side_keep_their_distribution() -> None:
    """800 problems with 5 references each: 4000 chains."""
    pyro.set_rng_seed(7)
    kernel = ParticleGibbs(reasoning_plate, 2, ess_threshold=1.0, num_references=5, max_plate_nesting=1)
    table = torch.stack([step_values(tokens) for tokens, *_ in trajectories()])
    mass = [math.log(p) + float(logsigmoid(torch.tensor(z)).sum()) for _, _, p, z, _ in trajectories()]
    pi = torch.tensor(mass, dtype=torch.float64).softmax(0)
    drawn = torch.multinomial(pi, 4000, replacement=True).view(5, 800)
    state = Trajectory({f"step_{t}": table[drawn, t] for t in range(MAX_STEPS)})
    for _ in range(2):
        posterior, state = kernel.step(state, 800)
    assert posterior.log_weights.shape == (10, 800) and state["step_0"].shape == (5, 800, MAX_TOKENS)
    first = torch.stack([(state["step_0"] == value).all(-1).sum() for value in table[:, 0].unique(dim=0)])
    expected = 4000 * torch.stack([pi[(table[:, 0] == value).all(-1)].sum() for value in table[:, 0].unique(dim=0)])
    assert float(((first - expected) ** 2 / expected).sum()) < bound(len(first) - 1)


# Pyro's driver, interruption
@pytest.mark.parametrize("options", [{"ancestor_sampling": True}, {"ancestor_sampling": True, "num_references": 2}])
def test_pyro_drives_every_form(options: dict[str, Any]) -> None:
    pyro.set_rng_seed(8)
    model = spiky()
    kernel = ParticleGibbs(lambda: model(1), 4, ess_threshold=1.0, max_plate_nesting=1, **options)
    chain = MCMC(kernel, num_samples=50, warmup_steps=2, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()["x_0"]
    paths = model.paths()
    p = sum(mass for path, mass in paths.items() if path[0] == 1) / sum(paths.values())
    assert samples.shape == (50, *([options["num_references"]] if "num_references" in options else []), 1)
    assert abs(float((samples == 1).double().mean()) - p) < 0.3


@pytest.mark.parametrize("options", [{"ancestor_sampling": True}, {"num_references": 2}])
def test_interruption_keeps_what_there_is(options: dict[str, Any]) -> None:
    iterations = []

    def stops() -> Tensor:
        if len(iterations) == 3:
            raise KeyboardInterrupt
        return spiky()(1)

    kernel = ParticleGibbs(stops, 2, max_plate_nesting=1, **options)
    with pytest.raises(KeyboardInterrupt) as caught:
        kernel.run(100, callback=iterations.append)
    assert len(caught.value.partial_posterior.iterations) == 3  # type: ignore[attr-defined]


def test_interruption_while_a_suffix_is_scored() -> None:
    """The nested execution leaves Pyro's handlers as they were."""
    calls = []

    def stops() -> Tensor:
        calls.append(set(map(id, _PYRO_STACK)))
        if len(calls) == 3:  # start, sweep, the replay within it
            raise KeyboardInterrupt
        return spiky(ends=False)(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        ParticleGibbs(stops, 2, ess_threshold=1.0, ancestor_sampling=True, max_plate_nesting=1).run(100)
    assert caught.value.partial_posterior is None  # type: ignore[attr-defined]
    assert calls[2] and not calls[2] & calls[1] and _PYRO_STACK == []
