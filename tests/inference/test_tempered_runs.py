"""Tempered SMC as a user meets it: agreement with enumeration, executions of different length, plates, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import reasoning
from ppl_llm.inference import (
    PIMH,
    PMMH,
    SMC,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    SMCFailed,
    SuffixMH,
    TemperedSMC,
    Trajectory,
    barrier,
)
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers import reasoning as program
from tests.helpers.models import MODELS
from tests.inference.test_smc import Broken

Z = 4.9  # two-sided 1e-6 per test


# Agreement with enumeration --------------------------------------------------------------------------------------------------------------

ALGORITHMS: dict[str, Callable[..., Any]] = {
    "Importance": partial(Importance, num_particles=16),
    "SMC": partial(SMC, num_particles=16),
    "TemperedSMC": partial(TemperedSMC, num_particles=16, betas=[0.3, 1.0]),
    "TemperedSMC, particle Gibbs": partial(TemperedSMC, num_particles=16, betas=[0.3, 1.0], kernel=partial(ParticleGibbs, num_particles=3)),
}


@pytest.mark.parametrize("model", ["hmm", "two sites", "prefix", "early exit"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_log_evidence_agrees_with_enumeration(algorithm: str, model: str) -> None:
    """1000 runs in one batch: z-test of the mean of Z-hat (false alarm 1e-6), its log within 0.05."""
    pyro.set_rng_seed(1)
    program_of, evidence = (
        (early_exit(), exact_evidence()) if model == "early exit" else ((k := MODELS[model]()).program, float(k.evidence))
    )
    posterior = ALGORITHMS[algorithm](replicate(program_of, 1000, 0), max_plate_nesting=1).run()
    z_hat = posterior.log_evidence.exp() / evidence
    error = z_hat.std() / math.sqrt(len(z_hat))
    assert abs(z_hat.mean() - 1) < Z * error
    assert error < 0.01 and abs(z_hat.mean().log()) < 0.05


def early_exit() -> Callable[[], Any]:
    model = reasoning(
        program.LM, program.PRM, stop=";", max_tokens=program.MAX_TOKENS, max_steps=program.MAX_STEPS, temperature=program.TEMPERATURE
    )
    return lambda: model("a")


def exact_evidence() -> float:
    return sum(p * math.prod(1 / (1 + math.exp(-v)) for v in z) for _, _, p, z, _ in program.trajectories())


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=3)])
def test_an_adaptive_run_on_a_language_model(kernel: Any) -> None:
    """Executions of different length that stop when all are done; posterior of the first token over 20 runs (false alarm 3e-6)."""
    pyro.set_rng_seed(2)
    model = early_exit()
    posterior = TemperedSMC(replicate(model, 20, 0), 400, ess_threshold=0.95, kernel=kernel, num_moves=2, max_plate_nesting=1).run()
    evidence = exact_evidence()
    assert len(posterior.betas) > 1 and abs(float((posterior.log_evidence.exp() / evidence).mean()) - 1) < 0.05
    first = (posterior.weights * (posterior.sites["step_0"][..., 0] == 1)).sum(0)
    exact = program.distribution(lambda steps, z: math.prod(1 / (1 + math.exp(-v)) for v in z))
    p = sum(mass for tokens, mass in exact.items() if tokens[0] == 1)
    assert abs(first.mean() - p) < 6.5 * first.std() / math.sqrt(20)  # t with 19 degrees of freedom
    assert first.std() / math.sqrt(20) < 0.02
    single = TemperedSMC(model, 50).run()
    assert single.answers().probs and single.lengths.unique().numel() > 1
    assert single.value.batch_shape == (50,)


def test_a_plate_with_shared_latents_is_one_population() -> None:
    pyro.set_rng_seed(3)
    data = torch.tensor([2.9, 3.1, 3.3])

    def model() -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3, dim=-1):
            noise = pyro.sample("noise", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Normal(mu + noise, 0.5), obs=data)
        return barrier(mu)

    posterior = TemperedSMC(model, 4000, num_moves=3, max_plate_nesting=1).run()
    cov = torch.eye(3) * 0.26 + 1.0
    assert posterior.log_evidence.shape == () and posterior.sites["noise"].shape == (4000, 3)
    exact = dist.MultivariateNormal(torch.zeros(3), cov).log_prob(data)
    torch.testing.assert_close(posterior.log_evidence.float(), exact, atol=0.15, rtol=0)
    mean = (cov.inverse() @ data).sum()
    torch.testing.assert_close((posterior.weights * posterior.value[:, 0]).sum().float(), mean, atol=0.1, rtol=0)


# Errors ----------------------------------------------------------------------------------------------------------------------------------


def coin() -> Tensor:
    x = pyro.sample("x", dist.Bernoulli(0.3))
    pyro.factor("y", torch.where(x > 0, 0.0, -math.inf))
    return barrier(x)


def tails() -> None:
    pyro.sample("x", dist.Bernoulli(0.3))
    pyro.factor("y", torch.tensor(-math.inf))


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=2)])
@pytest.mark.parametrize("betas", ["adaptive", [0.5, 1.0]])
def test_impossible_particles_die_and_never_come_back(kernel: Any, betas: Any) -> None:
    """A hard constraint: the likelihood is discontinuous at power 0; Z-hat is the share of the prior that satisfies it."""
    pyro.set_rng_seed(4)
    few = TemperedSMC(replicate(coin, 100, 0), 5, betas=betas, kernel=kernel, ess_threshold=0.2, max_plate_nesting=1)
    some = few.run()
    assert 0 < int(some.dead.sum()) < 100 and (some.log_evidence == -math.inf).equal(some.dead)
    assert torch.equal((some.weights * some.value).sum(0), (~some.dead).double())
    with pytest.raises(
        SMCFailed, match=r"all 5 particles have weight zero after site 'likelihood\^.*' in each of 100 populations"
    ) as caught:
        TemperedSMC(replicate(tails, 100, 0), 5, betas=betas, kernel=kernel, ess_threshold=0.2, max_plate_nesting=1).run()
    assert caught.value.site.startswith("likelihood^") and caught.value.partial_posterior is None  # type: ignore[attr-defined]
    found = TemperedSMC(coin, 2000, betas=betas, kernel=kernel, ess_threshold=0.2).run()
    assert abs(float(found.log_evidence.exp()) - 0.3) < Z * math.sqrt(0.21 / 2000)
    assert float((found.weights * found.value).sum()) == pytest.approx(1.0)


def test_a_likelihood_that_is_no_number() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", Broken(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"log-likelihood is nan or \+inf; run Importance on the model"):
        TemperedSMC(model, 4).run()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_particles": 0}, "num_particles must be an integer of at least 1, got 0"),
        ({"betas": []}, r"betas must be increasing powers from at least 0 that end at 1.*got \[\]"),
        ({"betas": [0.5, 0.2, 1.0]}, r"increasing powers.*got \[0.5, 0.2, 1.0\]"),
        ({"betas": [0.5]}, r"end at 1.*got \[0.5\]"),
        ({"betas": [-0.1, 1.0]}, "at least 0"),
        ({"betas": [math.nan, 1.0]}, "increasing"),
        ({"betas": "adaptiv"}, "betas must be 'adaptive' or increasing powers that end at 1, got 'adaptiv'"),
        ({"ess_threshold": 0.0}, r"an adaptive ladder aims .* ess_threshold must lie in \(0, 1\), got 0.0"),
        ({"ess_threshold": 1.0}, r"ess_threshold must lie in \(0, 1\), got 1.0"),
        ({"num_moves": -1}, "num_moves must be an integer of at least 0, got -1"),
        ({"kernel": ParticleGibbs}, r"missing 1 required positional argument: 'num_particles'.*partial\(ParticleGibbs, num_particles=4\)"),
        ({"kernel": lambda model, max_plate_nesting: 3}, "kernel must make a kernel over trajectories.* it made 3"),
        ({"kernel": partial(ParallelTempering, betas=[0.1, 1.0])}, "ParallelTempering cannot move the particles .* its state is more than"),
        ({"kernel": partial(PIMH, num_particles=4)}, "PIMH cannot move the particles of another algorithm"),
        ({"kernel": partial(PMMH, num_particles=4, parameters=["x"])}, "PMMH cannot move the particles of another algorithm"),
        ({"kernel": partial(ParticleGibbs, num_particles=4, num_references=2)}, "ParticleGibbs cannot move the particles of another"),
        ({"resampler": "sistematic"}, "did you mean 'systematic'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemperedSMC(coin, **{"num_particles": 4, **kwargs})


def test_interrupt_keeps_the_last_stage() -> None:
    calls = []

    def model() -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("y", x)
        return barrier(x)

    with pytest.raises(KeyboardInterrupt) as caught:
        TemperedSMC(model, 8, betas=[0.2, 0.5, 0.7, 1.0]).run()
    partial_posterior = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert partial_posterior.betas.tolist() == [0.2, 0.5]
    assert partial_posterior.cost["seconds"] > 0


def test_results() -> None:
    pyro.set_rng_seed(5)
    posterior = TemperedSMC(early_exit(), 32, betas=[0, 0.5, 1]).run()
    assert posterior.betas.tolist() == [0.5, 1.0]
    assert posterior.ess.shape == posterior.move_rates.shape == posterior.log_evidences.shape == (2,)
    assert posterior.ancestors.shape == (2, 32) and posterior.log_likelihood.shape == (32,)
    assert repr(posterior).startswith("TemperedPosterior(32 particles, 2 stages, ")
    assert posterior.cost["tokens_sampled"] > 0
    assert set(posterior().nodes) >= {"step_0", "_RETURN"}


def test_trajectories_that_differ() -> None:
    """In a value, or in length; a site that one of them lacks is one that it reached done."""

    def trajectory(x: list[int], y: list[int] | None, length: list[int]) -> Trajectory:
        sites = {"x": torch.tensor(x)} | ({} if y is None else {"y": torch.tensor(y)})
        return Trajectory(sites, length=torch.tensor(length))

    short, long = trajectory([1, 2, 3], None, [1, 1, 1]), trajectory([1, 9, 3], [-1, -1, 5], [1, 1, 2])
    assert short.differs(long).tolist() == [False, True, True]
    assert long.reorder(torch.tensor([2, 2, 0]))["y"].tolist() == [5, 5, -1]
