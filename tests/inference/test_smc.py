"""SMC and Importance as a user meets them: results, plates, errors, Pyro's own front ends."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import EmpiricalMarginal
from torch import Tensor

from ppl_llm.inference import (
    PIMH,
    PMMH,
    SMC,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    ParticlePosterior,
    SMCFailed,
    SuffixMH,
    TemperedSMC,
    barrier,
    count,
    until,
)
from tests.helpers.exact import Chain
from tests.helpers.mutants import WRONG_RESAMPLERS, WRONG_WEIGHTS, with_messenger
from tests.inference.test_smc_exact import spiky

FALSE_ALARM_Z = 4.9  # two-sided 1e-6 per test


def walk(observations: list[float]) -> Tensor:
    z = torch.zeros(())
    for t, y in enumerate(observations):
        z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=torch.tensor(y))
        z = barrier(z)
    return z


def walk_evidence(observations: list[float]) -> float:
    """Kalman filter."""
    mean, var, total = 0.0, 0.0, 0.0
    for y in observations:
        mean, var = 0.9 * mean, 0.81 * var + 1.0
        s = var + 0.25
        total += -0.5 * (math.log(2 * math.pi * s) + (y - mean) ** 2 / s)
        mean, var = mean + var / s * (y - mean), var * 0.25 / s
    return total


OBSERVATIONS = [0.5, -1.0, 2.0, 0.3]


def evidence_z(algorithm: SMC, model: Chain, replicates: int) -> float:
    """z-score of the mean of Z-hat over independent replicates in the model's plate."""
    z_hat = algorithm.run(replicates).log_evidence.exp()
    exact = sum(model.paths().values())
    return float((z_hat.mean() - exact) / (z_hat.std() / math.sqrt(replicates)))


@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_evidence_by_monte_carlo(ess_threshold: float) -> None:
    """One vectorised batch of 2e4 filters with N = 4; false alarm 1e-6."""
    pyro.set_rng_seed(0)
    model = spiky()
    assert abs(evidence_z(SMC(model, 4, ess_threshold=ess_threshold, max_plate_nesting=1), model, 20_000)) < FALSE_ALARM_Z


def test_monte_carlo_has_the_power_to_reject() -> None:
    pyro.set_rng_seed(0)
    model = spiky()
    for name in (
        "subtract max",
        "no reset",
        "reset to one",
    ):  # "overwrite" moves expectations more than the evidence; the exact test has it
        smc = SMC(model, 4, ess_threshold=0.9, max_plate_nesting=1)
        with_messenger(WRONG_WEIGHTS[name])(smc)
        assert abs(evidence_z(smc, model, 20_000)) > FALSE_ALARM_Z
    _, midpoint = WRONG_RESAMPLERS["systematic at the midpoint"]
    assert abs(evidence_z(SMC(model, 4, resampler=midpoint, ess_threshold=1.0, max_plate_nesting=1), model, 20_000)) > FALSE_ALARM_Z


@pytest.mark.parametrize("make", [SMC, Importance])
def test_continuous_model_against_the_kalman_filter(make: Any) -> None:
    pyro.set_rng_seed(1)
    with_plate = poutine.infer_config(walk, lambda site: {})

    def replicated(replicates: int) -> Tensor:
        with pyro.plate("replicates", replicates, dim=-1):
            return with_plate(OBSERVATIONS)

    z_hat = make(replicated, 64, max_plate_nesting=1).run(4000).log_evidence.exp()
    exact = math.exp(walk_evidence(OBSERVATIONS))
    assert abs(z_hat.mean() - exact) < FALSE_ALARM_Z * z_hat.std() / math.sqrt(4000)
    assert z_hat.std() < 2 * exact  # the bound means something


def test_results_without_plates() -> None:
    pyro.set_rng_seed(2)
    posterior = SMC(walk, 300, ess_threshold=1.0).run(OBSERVATIONS)
    assert posterior.log_weights.shape == posterior.weights.shape == (300,)
    assert posterior.log_weights.dtype == torch.float64
    assert posterior.log_evidence.shape == ()
    assert posterior.ess.shape == (4,)
    assert posterior.ancestors.shape == (4, 300)
    assert posterior.resampled.tolist() == [True] * 4
    torch.testing.assert_close(posterior.get_log_normalizer(), posterior.log_evidence)
    torch.testing.assert_close(posterior.log_weights.logsumexp(0) - math.log(300), posterior.log_evidence)
    torch.testing.assert_close(posterior.get_ESS(), 1 / posterior.weights.square().sum())
    assert set(posterior.sites) == {"z_0", "z_1", "z_2", "z_3"}
    torch.testing.assert_close(posterior.sites["z_3"], posterior.value)  # the value returned belongs to the lineages
    assert len(posterior.sites["z_0"].unique()) < 300  # early values along surviving lineages only
    assert repr(posterior).startswith("ParticlePosterior(300 particles, 4 barriers, 4 resampled, log evidence ")


def test_lineages_follow_the_ancestors() -> None:
    pyro.set_rng_seed(3)
    seen: list[Tensor] = []

    def model() -> Tensor:
        z = pyro.sample("z_0", dist.Normal(0.0, 1.0))
        seen.append(z)
        for t in range(3):
            pyro.factor(f"f_{t}", 2 * z)
            z = barrier(z)
            z = pyro.sample(f"z_{t + 1}", dist.Normal(z, 0.1))
        return z

    posterior = SMC(model, 20, ess_threshold=1.0).run()
    particles = torch.arange(20)
    for ancestors in posterior.ancestors.flip(0):
        particles = ancestors[particles]
    torch.testing.assert_close(posterior.sites["z_0"], seen[0][particles])
    steps = torch.stack([posterior.sites[f"z_{t}"] for t in range(4)])
    assert (steps.diff(dim=0).abs() < 0.6).all()  # six standard deviations: parents and children belong together


def test_one_posterior_for_each_problem() -> None:
    pyro.set_rng_seed(4)

    def model(targets: Tensor) -> Tensor:
        with pyro.plate("problems", len(targets), dim=-1):
            z = torch.zeros(())
            for t in range(3):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"y_{t}", dist.Normal(z, 0.3), obs=targets)
                z = barrier(z)
        return z

    posterior = SMC(model, 200, max_plate_nesting=1, audit=True).run(torch.tensor([-3.0, 0.0, 3.0]))
    assert posterior.log_weights.shape == (200, 3)
    assert posterior.ess.shape == (3, 3)
    assert posterior.ancestors.shape == (3, 200, 3)
    assert posterior.sites["z_0"].shape == (200, 3)
    means = (posterior.weights * posterior.value).sum(0)
    torch.testing.assert_close(means, torch.tensor([-3.0, 0.0, 3.0]).double(), atol=0.4, rtol=0)
    assert posterior.audit is not None and posterior.audit.error == 0.0
    signs = posterior.marginal(lambda z: bool(z > 0))
    assert [m.mode for m in signs[::2]] == [False, True] and len(signs) == 3
    with pytest.raises(ValueError, match=r"one for each of \(3,\) plate indices"):
        EmpiricalMarginal(posterior, "z_0")


def test_a_plate_with_shared_latents_is_one_population() -> None:
    """A latent outside the plate makes its elements dependent: the weight is their product, as in Pyro's own importance sampling."""
    pyro.set_rng_seed(5)
    data = torch.tensor([0.9, 1.1, 1.3])

    def model() -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=data)
        return barrier(mu)

    posterior = SMC(model, 50_000, max_plate_nesting=1, ess_threshold=0.0).run()
    cov = torch.eye(3) + 1.0
    exact = dist.MultivariateNormal(torch.zeros(3), cov).log_prob(data)
    assert posterior.log_evidence.shape == ()
    torch.testing.assert_close(posterior.log_evidence.float(), exact, atol=0.03, rtol=0)

    def late() -> None:
        with pyro.plate("data", 3, dim=-1):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("f", x)
            x = barrier(x)
        pyro.sample("shared", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'shared' lies outside plate 'data', over which the filter has already resampled"):
        SMC(late, 5, max_plate_nesting=1).run()


def test_empirical_marginal_of_a_site() -> None:
    pyro.set_rng_seed(6)
    posterior = SMC(walk, 100).run(OBSERVATIONS)
    marginal = EmpiricalMarginal(posterior, "z_2")
    torch.testing.assert_close(marginal.mean, (posterior.weights * posterior.sites["z_2"]).sum().float())
    torch.testing.assert_close(posterior.marginal("z_2").mean, marginal.mean)
    assert set(posterior().nodes) == {"z_0", "z_1", "z_2", "z_3", "_RETURN"}


def test_marginal_over_hashable_values() -> None:
    pyro.set_rng_seed(7)

    def coins() -> dict[str, Tensor]:
        a, b = pyro.sample("a", dist.Bernoulli(0.5)), pyro.sample("b", dist.Bernoulli(0.5))
        pyro.factor("both", torch.where(a == b, 0.0, -math.inf))
        return {"a": a, "b": b}

    marginal = SMC(coins, 2000).run().marginal(lambda value: (int(value["a"]), int(value["b"])))
    assert set(marginal) == {(0, 0), (1, 1)}
    assert marginal[(0, 0)] + marginal[(1, 1)] == pytest.approx(1.0)
    assert marginal.expectation(lambda pair: pair[0]) == pytest.approx(marginal[(1, 1)])
    assert abs(marginal[(1, 1)] - 0.5) < 0.08
    with pytest.raises(TypeError, match="needs a model that returns its context, this one returned dict"):
        SMC(coins, 20).run().answers()


def test_per_site_proposals() -> None:
    pyro.set_rng_seed(8)
    near = {f"z_{t}": dist.Normal(y, 0.6) for t, y in enumerate(OBSERVATIONS)}
    posterior = SMC(walk, 4000, proposals=near, audit=True).run(OBSERVATIONS)
    assert abs(float(posterior.log_evidence) - walk_evidence(OBSERVATIONS)) < 0.15
    bad = {"z_0": dist.Normal(torch.zeros(2), 1.0).to_event(1)}
    with pytest.raises(ValueError, match="the proposal of site 'z_0' has event shape"):
        SMC(walk, 4, proposals=bad).run(OBSERVATIONS)


def test_scaled_models_keep_their_target() -> None:
    """poutine.scale(model, 2) is the target p^2: the prior proposal no longer cancels."""
    pyro.set_rng_seed(9)

    def model() -> Tensor:
        return pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))

    posterior = Importance(poutine.scale(model, 2.0), 40_000).run()
    assert float(posterior.log_evidence.exp()) == pytest.approx(0.2**2 + 0.8**2, abs=0.01)
    assert posterior.marginal(int)[1] == pytest.approx(0.64 / 0.68, abs=0.01)


def test_the_death_of_all_populations_names_the_site() -> None:
    def model() -> None:
        with pyro.plate("problems", 3, dim=-1):
            for t in range(2):
                x = pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
                wall = torch.tensor([-math.inf if t == 1 else 0.0, -math.inf, 0.0 if hope else -math.inf])
                pyro.factor(f"fine_{t}", x)
                pyro.factor(f"wall_{t}", wall)
                x = barrier(x)

    hope = True
    assert SMC(model, 7, max_plate_nesting=1).run().dead.tolist() == [True, True, False]
    hope = False
    with pytest.raises(SMCFailed, match="all 7 particles have weight zero after site 'wall_1' in each of 3 populations") as caught:
        SMC(model, 7, max_plate_nesting=1).run()
    assert caught.value.site == "wall_1"
    assert isinstance(caught.value.partial_posterior, ParticlePosterior)  # type: ignore[attr-defined]


class Broken(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) * math.nan


def test_nan_weights_name_the_site() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("broken", Broken(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="site 'broken' gave a nan log-probability"):
        SMC(model, 3).run()


class Opaque:
    """Something a filter cannot permute."""


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (Opaque(), r"barrier leaf state\['memory'\]\[1\] is of type Opaque"),
        (torch.zeros(3), r"barrier leaf state\['memory'\]\[1\] has shape \(3,\).*here \(8,\)"),
    ],
)
def test_barrier_leaves_that_cannot_be_permuted(leaf: Any, message: str) -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", x)
        barrier({"x": x, "memory": [1, leaf, None, "text"]})

    with pytest.raises((TypeError, ValueError), match=message):
        SMC(model, 8, ess_threshold=1.0).run()


def test_plates_left_of_the_particles() -> None:
    def model() -> None:
        with pyro.plate("problems", 3):
            barrier(pyro.sample("x", dist.Normal(0.0, 1.0)))

    with pytest.raises(ValueError, match="'x' lies in plate 'problems' to the left of the particle plate; pass max_plate_nesting=1"):
        SMC(model, 8).run()


class Stubborn(dist.Normal):
    """Ignores expand()."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Stubborn:
        return self


def test_sites_without_the_particle_dimension() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", Stubborn(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(
        ValueError, match=r"site 'y' has a log_prob of shape \(\), which lacks the particle dimension: expected 8 at dim -1"
    ):
        SMC(model, 8).run()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_particles": 0}, "num_particles must be an integer of at least 1, got 0"),
        ({"num_particles": 2.5}, "num_particles must be an integer of at least 1, got 2.5"),
        ({"ess_threshold": 1.01}, r"ess_threshold must lie in \[0, 1\] .*got 1.01"),
        ({"ess_threshold": float("nan")}, r"ess_threshold must lie in \[0, 1\]"),
        ({"resampler": "stratifed"}, "did you mean 'stratified'"),
        ({"max_plate_nesting": -1}, "max_plate_nesting must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMC(walk, **{"num_particles": 4, **kwargs})


def test_models_without_sites_or_with_an_early_barrier() -> None:
    with pytest.raises(ValueError, match="no sample site"):
        SMC(lambda: None, 3).run()
    with pytest.raises(ValueError, match="barrier before any sample site"):
        SMC(lambda: barrier(1), 3).run()
    with pytest.raises(ValueError, match="model must be a function"):
        SMC("model", 3)  # type: ignore[arg-type]


def test_interrupt_keeps_what_was_done() -> None:
    states: list[ParticlePosterior] = []

    def model() -> None:
        for t in range(5):
            count(calls=1)
            z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
            if t == 3:
                raise KeyboardInterrupt
            pyro.factor(f"f_{t}", z)
            barrier(z)

    with pytest.raises(KeyboardInterrupt) as caught:
        SMC(model, 10, callback=states.append).run()
    partial = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert len(states) == 3 and partial is states[-1]
    assert set(partial.sites) == {"z_0", "z_1", "z_2"}
    assert partial.cost["calls"] == 4
    torch.testing.assert_close(partial.value, partial.sites["z_2"])


def test_importance_runs_the_model_once() -> None:
    calls = []

    def model() -> None:
        calls.append(1)
        pyro.factor("f", pyro.sample("z", dist.Normal(0.0, 1.0)))

    posterior = Importance(model, 64).run()
    assert len(calls) == 1
    assert posterior.num_particles == 64 and posterior.ess.numel() == 0


def test_seed_reproduces_a_run() -> None:
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(11)
        runs.append(SMC(walk, 16).run(OBSERVATIONS))
    assert torch.equal(runs[0].log_weights, runs[1].log_weights)
    assert torch.equal(runs[0].ancestors, runs[1].ancestors)


RUNS_WITH_PROPOSALS: dict[str, Any] = {
    "SMC": lambda model, proposals: SMC(model, 4, proposals=proposals).run(),
    "slices": lambda model, proposals: list(SMC(model, 4, proposals=proposals).iterate()),
    "Importance": lambda model, proposals: Importance(model, 4, proposals=proposals).run(),
    "ParticleGibbs": lambda model, proposals: ParticleGibbs(model, 4, proposals=proposals).run(2),
    "SuffixMH": lambda model, proposals: SuffixMH(model, proposals=proposals).run(2),
    "PIMH": lambda model, proposals: PIMH(model, 4, proposals=proposals).run(2),
    "PMMH": lambda model, proposals: PMMH(model, 4, ["z_0"], proposals=proposals).run(2),
    "TemperedSMC": lambda model, proposals: TemperedSMC(model, 4, kernel=partial(SuffixMH, proposals=proposals)).run(),
    "ParallelTempering": lambda model, proposals: ParallelTempering(model, [0.5, 1.0], partial(SuffixMH, proposals=proposals)).run(2),
}


@pytest.mark.parametrize("name", RUNS_WITH_PROPOSALS)
def test_proposals_for_sites_that_do_not_occur_are_refused_by_name(name: str) -> None:
    """A step that was not reached is no mistake, nor is a site that ``condition`` observes."""

    def model() -> torch.Tensor:
        z = pyro.sample("z_0", dist.Normal(0.0, 1.0))
        pyro.factor("f_0", -(z**2))
        z = barrier(z)
        return barrier(pyro.sample("z_1", dist.Normal(z, 1.0)))

    q, run = dist.Normal(0.0, 2.0), RUNS_WITH_PROPOSALS[name]
    run(model, {"z_1": q, "z_7": q, "f_0": q})
    with pytest.raises(ValueError, match=r"proposals has a site 'zz_1', which the model does not; did you mean 'z_1'\? .* 'z_0', 'z_1'"):
        run(model, {"z_1": q, "zz_1": q})
    with pytest.raises(ValueError, match=r"proposals has a site 'other', which the model does not\. Its latent sites are 'z_0', 'z_1'"):
        run(model, {"other": q})


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=2)])
def test_moves_and_beginnings_take_the_proposals_of_later_sites(kernel: Any) -> None:
    """Found by the fuzz (program 3063 of seed 0): a beginning of the model does not have all its sites."""

    def model(last: str = "w_1") -> torch.Tensor:
        z = barrier(pyro.sample("z_0", dist.Bernoulli(0.4)))
        return barrier(pyro.sample(last, dist.Bernoulli(0.2 + 0.5 * z)))

    q = {"z_0": dist.Bernoulli(0.5), "w_1": dist.Bernoulli(0.5)}
    assert until(model, 1)() is not None
    for program in (model, until(model, 1)):
        pyro.set_rng_seed(0)
        assert SMC(program, 8, proposals=q, rejuvenate=kernel).run().num_particles == 8
    with pytest.raises(ValueError, match="proposals has a site 'w_1', which the model does not"):
        SMC(model, 8, proposals=q, rejuvenate=kernel).run("v_1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ess_threshold", "x"), ("selection", 3), ("resampler", 3), ("proposals", 3), ("callback", 3)],
)
def test_arguments_of_another_type_are_refused_by_name(name: str, value: Any) -> None:
    wrong: Any = {name: value}
    with pytest.raises(ValueError, match=f"{name} must .*got {value!r}"):
        SMC(lambda: None, 4, **wrong)
