"""A run owns its state: one algorithm object runs many times at once, in turns, and inside of other runs."""

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
from pyro.infer import MCMC
from torch import Tensor

from ppl_llm import TransformersLM, TransformersPRM, reasoning
from ppl_llm.inference import (
    ABMCTS,
    DORA,
    DVTS,
    MCTS,
    PIMH,
    PMMH,
    REBASE,
    SMC,
    Adaptive,
    BeamSearch,
    BestFirst,
    Enumeration,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    ParticlePosterior,
    PrefixWalk,
    SpeculativeRejection,
    SuffixMH,
    TemperedSMC,
    barrier,
    run_concurrently,
)
from tests.helpers.algorithms import ALGORITHMS, SEARCHES
from tests.helpers.models import MODELS
from tests.helpers.mutants import SHARED_KERNELS, RememberedStart, SharedMessenger, only_blocked
from tests.helpers.waiting import Counting, wait

SERVICE = Counting()
DATA = [(1, 0, 2, 1), (0, 0), (2, 2, 1), (1, 1, 1, 1, 0)]
"""Observations of programs that take turns, of different lengths."""

INITIAL = torch.tensor([0.6, 0.4])
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
EMISSION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])


def hidden_markov(observations: tuple[int, ...]) -> Tensor:
    """Waits in every step, so that programs change in the middle of their sweeps."""
    z = pyro.sample("z_0", dist.Categorical(INITIAL))
    for t, y in enumerate(observations):
        if t > 0:
            z = pyro.sample(f"z_{t}", dist.Categorical(TRANSITION[z]))
        wait(SERVICE, turns=1 + t % 2)
        pyro.sample(f"y_{t}", dist.Categorical(EMISSION[z]), obs=torch.tensor(y))
        z = barrier(z)
    return z


def line(observations: tuple[int, ...]) -> Tensor:
    """The same with a continuous parameter."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    z = torch.zeros(())
    for t, y in enumerate(observations):
        z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        wait(SERVICE, turns=1 + t % 2)
        pyro.sample(f"y_{t}", dist.Normal(z, scale), obs=torch.tensor(float(y)))
        z = barrier(z)
    return z


def same(found: ParticlePosterior, alone: ParticlePosterior) -> bool:
    return (
        found.sites.keys() == alone.sites.keys()
        and all(torch.equal(found.sites[name], alone.sites[name]) for name in alone.sites)
        and torch.equal(found.log_weights, alone.log_weights)
        and torch.equal(found.ess, alone.ess)
    )


def together_as_alone(run: Callable[[tuple[int, ...]], ParticlePosterior]) -> bool:
    """Whether the programs of one object that take turns give what each one gives alone."""
    alone = []
    for seed, data in enumerate(DATA):
        pyro.set_rng_seed(seed)
        alone.append(run(data))
    together = run_concurrently([partial(run, data) for data in DATA], seeds=range(len(DATA)))
    return all(map(same, together, alone))


SHARED: dict[str, tuple[Any, dict[str, int]]] = {
    "SMC": (SMC(hidden_markov, 6, ess_threshold=1.0), {}),
    "SMC, islands": (SMC(hidden_markov, 4, islands=2, ess_threshold=1.0), {}),
    "Importance": (Importance(hidden_markov, 6), {}),
    "TemperedSMC": (TemperedSMC(hidden_markov, 6), {}),
    "ParticleGibbs": (ParticleGibbs(hidden_markov, 4), {"num_samples": 4}),
    "ParticleGibbs, ancestor sampling": (ParticleGibbs(hidden_markov, 4, ancestor_sampling=True), {"num_samples": 4}),
    "SuffixMH": (SuffixMH(hidden_markov), {"num_samples": 6}),
    "PIMH": (PIMH(hidden_markov, 4), {"num_samples": 6}),
    "PMMH": (PMMH(line, 4, ["scale"]), {"num_samples": 4, "warmup_steps": 4}),
    "ParallelTempering": (ParallelTempering(hidden_markov, [0.2, 0.5, 0.8, 1.0]), {"num_samples": 5}),
    "BeamSearch": (BeamSearch(hidden_markov, 2, 2), {}),
    "REBASE": (REBASE(hidden_markov, 4), {}),
    "BestFirst": (BestFirst(hidden_markov, expand=3, budget=15), {}),
    "MCTS": (MCTS(hidden_markov, 15, 3), {}),
    "ABMCTS": (ABMCTS(hidden_markov, 15, 3), {}),
    "SpeculativeRejection": (SpeculativeRejection(hidden_markov, 6), {}),
    "DORA": (DORA(hidden_markov, 4, embed=lambda state: torch.ones(4, 2)), {}),
    "PrefixWalk": (PrefixWalk(hidden_markov, steps=20), {"num_samples": 3}),
    "DVTS": (DVTS(hidden_markov, 2, 2), {}),
    "Adaptive": (Adaptive(SMC(hidden_markov, 3, ess_threshold=1.0), lambda posterior: float(posterior.get_ESS()) > 4, 12), {}),
}


@pytest.mark.parametrize("name", SHARED)
def test_one_object_in_programs_that_take_turns(name: str) -> None:
    algorithm, options = SHARED[name]
    assert together_as_alone(lambda data: algorithm.run(observations=data, **options))


def test_rejects_a_messenger_that_runs_share() -> None:
    """The sweeps of all programs add to the particles of the one that began last."""
    assert not together_as_alone(SharedMessenger(hidden_markov, 6, ess_threshold=1.0).run)


@pytest.mark.parametrize("name", SHARED_KERNELS)
def test_rejects_kernels_that_chains_share(name: str) -> None:
    kernel: Any = {
        "turns": lambda wrong: wrong(hidden_markov, [0.2, 0.5, 0.8, 1.0]),
        "adaptation": lambda wrong: wrong(line, 4, ["scale"]),
    }[name](SHARED_KERNELS[name])
    assert not together_as_alone(lambda data: kernel.run(5, data, warmup_steps=4))


@pytest.mark.parametrize("name", [*ALGORITHMS, *SEARCHES])
def test_a_run_leaves_the_object_as_it_was(name: str) -> None:
    pyro.set_rng_seed(0)
    build, run = (ALGORITHMS[name].build, ALGORITHMS[name].run) if name in ALGORITHMS else (SEARCHES[name], {})
    model = MODELS["calibrated" if name == "PMMH" else "hmm"]()
    algorithm = build(model.program, model.nesting)

    def state(part: Any) -> Any:
        attributes = getattr(part, "__dict__", {}) if type(part).__module__.startswith("ppl_llm.inference") else {}
        return {key: (id(value), state(value)) for key, value in attributes.items()}

    before = state(algorithm)
    algorithm.run(**{option: min(count, 3) for option, count in run.items()})
    assert state(algorithm) == before and before


@pytest.mark.parametrize("islands", [1, 2])
def test_slices_of_two_runs_in_turns(islands: int) -> None:
    """Of one object; torch's generator is handed back and forth."""
    smc = SMC(hidden_markov, 6, ess_threshold=1.0, islands=islands)
    whole, states = [], []
    for seed, data in enumerate(DATA[:2]):
        pyro.set_rng_seed(seed)
        states.append(torch.get_rng_state())
        whole.append(smc.run(data))
    slices: list[Any] = [smc.iterate(data) for data in DATA[:2]]
    last: list[Any] = [None, None]
    for number in itertools.chain.from_iterable([(0, 1)] * 6):
        torch.set_rng_state(states[number])
        last[number] = next(slices[number], last[number])
        states[number] = torch.get_rng_state()
    assert all(found.complete for found in last) and all(map(same, last, whole))


# Nested runs -----------------------------------------------------------------------------------------------------------------------------


def inner(x: Tensor) -> Tensor:
    """Whose evidence depends on a value of the program around it."""
    with pyro.plate("outer particles", x.numel(), dim=-1):
        z = pyro.sample("z_0", dist.Categorical(INITIAL))
        pyro.factor("f_0", -1.0 * (z != x).double())
        z = barrier(z)
        z = pyro.sample("z_1", dist.Categorical(TRANSITION[z]))
        pyro.factor("f_1", -0.5 * (z == x).double())
        return barrier(z)


FILTER = SMC(inner, 2, ess_threshold=1.0, max_plate_nesting=1)


def outer() -> Tensor:
    """The evidence of a filter inside is estimated in every step for every particle: the target is that of the exact evidence."""
    x = pyro.sample("x_0", dist.Categorical(INITIAL))
    for t in range(2):
        if t > 0:
            x = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[x]))
        estimate = FILTER.run(x.flatten()).log_evidence
        pyro.factor(f"g_{t}", estimate.reshape(x.shape))
        x = barrier(x)
    return x


def exact_evidence() -> float:
    """By hand."""

    def of_inner(x: int) -> float:
        pairs = itertools.product(range(2), repeat=2)
        return sum(float(INITIAL[a] * TRANSITION[a, b]) * math.exp(-1.0 * (a != x) - 0.5 * (b == x)) for a, b in pairs)

    pairs = itertools.product(range(2), repeat=2)
    return sum(float(INITIAL[a] * TRANSITION[a, b]) * of_inner(a) * of_inner(b) for a, b in pairs)


def nested_z_score(replicas: int = 20_000) -> float:
    def replicated() -> Tensor:
        with pyro.plate("replicas", replicas, dim=-1):
            return outer()

    pyro.set_rng_seed(0)
    estimates = SMC(replicated, 2, ess_threshold=1.0, max_plate_nesting=1).run().log_evidence.exp()
    error = float(estimates.mean()) - exact_evidence()
    deviation = float(estimates.std()) / math.sqrt(replicas)
    assert deviation < 3e-3 * exact_evidence()  # it sees a bias of 1 %
    return abs(error) / deviation


def test_a_filter_inside_a_model_under_a_filter() -> None:
    """E[exp(log_evidence)] is the exact evidence; false alarm 1e-6."""
    assert nested_z_score() < 4.9


def test_rejects_nested_runs_that_share_plates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.inference.handlers.sweep.isolated", only_blocked)
    with pytest.raises(ValueError, match="_particles"):
        nested_z_score(10)


NESTED: dict[str, Callable[[], ParticlePosterior]] = {
    "SMC": lambda: SMC(hidden_markov, 3).run((0, 1)),
    "the same SMC": lambda: SHARED["SMC"][0].run((0, 1)),
    "audited SMC": lambda: SMC(hidden_markov, 3, audit=True).run((0, 1)),
    "slices": lambda: list(SMC(hidden_markov, 3).iterate((0, 1)))[-1],
    "Enumeration": lambda: Enumeration(hidden_markov).run((0, 1)),
    "TemperedSMC": lambda: TemperedSMC(hidden_markov, 3).run((0, 1)),
    "ParticleGibbs, ancestor sampling": lambda: ParticleGibbs(hidden_markov, 3, ancestor_sampling=True).run(3, (0, 1)),
    "PIMH": lambda: PIMH(hidden_markov, 3).run(3, (0, 1)),
    "ParallelTempering": lambda: ParallelTempering(hidden_markov, [0.5, 1.0]).run(3, (0, 1)),
    "audited BeamSearch": lambda: BeamSearch(hidden_markov, 2, 2, audit=True).run((0, 1)),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("around", [SHARED["SMC"][0], SHARED["ParticleGibbs"][0], SHARED["BeamSearch"][0]])
def test_every_algorithm_runs_inside_of_others_as_alone(name: str, around: Any) -> None:
    """Whatever runs around it, in its plates: the nested run draws and weighs as outside of any run."""
    seen: list[tuple[Tensor, ParticlePosterior]] = []

    def model(observations: tuple[int, ...]) -> Tensor:
        # Chains and searches refuse random numbers that they do not see.
        with pyro.plate("_unrelated", 1, dim=-3), torch.random.fork_rng(devices=[]):
            seen.append((torch.get_rng_state(), NESTED[name]()))
        return hidden_markov(observations)

    pyro.set_rng_seed(0)
    changed = type(around)(model, 4) if not isinstance(around, BeamSearch) else BeamSearch(model, 2, 2)
    changed.run(**({"num_samples": 2} if isinstance(around, ParticleGibbs) else {}), observations=(1, 2))
    for state, found in seen:
        torch.set_rng_state(state)
        assert same(found, NESTED[name]())


# Pyro's driver ---------------------------------------------------------------------------------------------------------------------------

FEW, MANY = torch.full((2,), -1.3), torch.full((12,), 1.0)
"""Posterior of the mean: (-0.867, 0.577) and (0.923, 0.277). The evidence of the few is larger than any estimate for the many."""


def gaussian(data: Tensor) -> Tensor:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("y", dist.Normal(z[..., None], 1.0).log_prob(data).sum(-1))
    return z


def moments_on_other_data(kernel: Any) -> tuple[float, float]:
    pyro.set_rng_seed(0)
    for data in (FEW, MANY):
        driver = MCMC(kernel, num_samples=400, warmup_steps=20, disable_progbar=True)
        driver.run(data)
    z = driver.get_samples()["z"]
    return float(z.mean()), float(z.std())


@pytest.mark.parametrize("kernel", [PIMH(gaussian, 16), PMMH(gaussian, 4, ["z"]), ParticleGibbs(gaussian, 16)])
def test_a_kernel_runs_again_on_other_data(kernel: Any) -> None:
    """Exact: mean 0.923, deviation 0.277. A chain that starts at the first data's filter stays there, at -0.87."""
    mean, deviation = moments_on_other_data(kernel)
    assert abs(mean - 12 / 13) < 0.1 and abs(deviation - 1 / math.sqrt(13)) < 0.06


def test_rejects_a_kernel_that_remembers_its_first_start() -> None:
    mean, _ = moments_on_other_data(RememberedStart(gaussian, 16))
    assert abs(mean - 12 / 13) > 1.5


def test_a_start_that_was_set_is_that_of_one_run() -> None:
    kernel, given = PIMH(gaussian, 4), {"z": torch.tensor(0.25)}
    kernel.initial_params = given
    kernel.setup(0, MANY)
    assert dict(kernel.initial_params) == given
    kernel.setup(0, MANY)
    assert dict(kernel.initial_params) != given
    kernel.cleanup()


def test_rates_are_those_of_the_run() -> None:
    """In Pyro's log and diagnostics, and on the posterior; the warm-up does not count once it is over."""
    pyro.set_rng_seed(0)
    kernel = PMMH(gaussian, 4, ["z"], step_size=20.0)
    driver = MCMC(kernel, num_samples=50, warmup_steps=50, disable_progbar=True)
    driver.run(MANY)
    found = driver.diagnostics()
    assert 0.1 < found["acceptance rate"]["chain 0"] < 0.7 and found["step size scale"]["chain 0"] < 0.5
    assert kernel.logging() == {
        "step size": f"x{found['step size scale']['chain 0']:.3g}",
        "acc. rate": f"{found['acceptance rate']['chain 0']:.3f}",
    }
    posterior = kernel.run(50, MANY, warmup_steps=50)
    assert posterior.step_size_scale is not None and posterior.step_size_scale < 0.5
    assert posterior.acceptance_rate is not None and 0.1 < float(posterior.acceptance_rate) < 0.7
    assert ParticleGibbs(gaussian, 4).run(3, MANY).acceptance_rate is None


def test_demo_models_in_programs_that_take_turns() -> None:
    """Four problems, N = 8, resampling at every barrier: alone they have 3 to 6 barriers; with a shared messenger they had 9 to 18."""
    model = reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"), max_steps=6, max_tokens=40)
    problems = [
        "Begin with 26. First: take away 5. Second: increase it by 3. What number do you get?",
        "Begin with 7. First: add 2. What number do you get?",
        "Begin with 12. First: add 6. Second: take away 4. What number do you get?",
        "Begin with 3. First: multiply it by 4. What number do you get?",
    ]
    smc = SMC(model, 8, ess_threshold=1.0)
    alone = []
    for seed, problem in enumerate(problems):
        pyro.set_rng_seed(seed)
        alone.append(smc.run(problem))
    together = run_concurrently([partial(smc.run, problem) for problem in problems], seeds=range(4))
    for found, expected in zip(together, alone, strict=True):
        assert found.num_barriers == expected.num_barriers
        assert float(found.log_evidence) == pytest.approx(float(expected.log_evidence), abs=1e-3)
