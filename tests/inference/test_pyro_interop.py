"""Both ways with Pyro: its models under our algorithms, with ``barrier`` added and nothing else; our models under its algorithms.

Monte-Carlo comparisons have a false alarm rate of 1e-6 (|z| < 4.9) unless they say otherwise.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import HMC, MCMC, EmpiricalMarginal, Predictive, SMCFilter, config_enumerate
from pyro.infer import Importance as PyroImportance
from torch import Tensor

from ppl_llm.inference import SMC, Enumeration, ParticleGibbs, SuffixMH, barrier
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers.models import EMISSION, INITIAL, SEQUENCES, TRANSITION, hidden_markov, hmm, linear_gaussian

Z = 4.9


def evidence_z(model: Any, exact: float, replicas: int = 1000, particles: int = 32, nesting: int = 0, **options: Any) -> float:
    """z-score of the mean evidence estimate of independent filters; its standard error is asserted to be below 5 %."""
    z_hat = SMC(replicate(model, replicas, nesting), particles, max_plate_nesting=nesting + 1, **options).run().log_evidence.exp() / exact
    error = z_hat.std() / math.sqrt(z_hat.numel())
    assert error < 0.05
    return float((z_hat.mean() - 1) / error)


# Models in the style of Pyro's documentation, with a barrier ----------------------------------------------------------------------------

# Position and velocity, seen through the position: the model of the tutorials on state-space models and of GaussianHMM.
MOTION = torch.tensor([[1.0, 0.0], [0.5, 0.9]])  # row vectors, z_t = z_{t-1} @ MOTION + noise
NOISE = torch.tensor([[0.3, 0.1], [0.1, 0.2]])
SEEN = torch.tensor([[1.0], [0.0]])
TRACK = torch.tensor([0.3, 0.9, 1.1, 2.4, 2.0])


def tracking(barriers: Any = barrier) -> Tensor:
    z = pyro.sample("z_init", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    for t, y in enumerate(TRACK):
        z = pyro.sample(f"z_{t}", dist.MultivariateNormal(z @ MOTION, NOISE))
        pyro.sample(f"y_{t}", dist.Normal((z @ SEEN)[..., 0], 0.5), obs=y)
        z = barriers(z)
    return z


def tracking_oracle() -> Any:
    return dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        MOTION,
        dist.MultivariateNormal(torch.zeros(2), NOISE),
        SEEN,
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1) * 0.25),
        duration=len(TRACK),
    )


def test_linear_state_space_against_gaussian_hmm() -> None:
    pyro.set_rng_seed(0)
    oracle = tracking_oracle()
    assert abs(evidence_z(tracking, float(oracle.log_prob(TRACK[:, None]).exp()))) < Z
    last = oracle.filter(TRACK[:, None])
    posterior = SMC(replicate(tracking, 500, 0), 64, max_plate_nesting=1).run()
    mean = (posterior.weights[..., None] * posterior.value).sum(0)
    # Self-normalised estimates are biased by O(1 / N); weighed by their evidence they are not.
    excess = (mean - last.loc) * (posterior.log_evidence.exp() / posterior.log_evidence.exp().mean())[:, None]
    assert float((excess.mean(0) / (excess.std(0) / math.sqrt(500))).abs().max()) < Z
    assert float(excess.std(0).max()) / math.sqrt(500) < 0.05


def test_discrete_hmm_with_markov_and_enumeration_hints() -> None:
    """The tutorials' form, ``pyro.markov`` and ``infer={"enumerate": "parallel"}`` left in place; ``DiscreteHMM`` is the oracle."""
    pyro.set_rng_seed(1)
    data = torch.tensor(SEQUENCES[1])

    @config_enumerate
    def model() -> None:
        z = pyro.sample("x_init", dist.Categorical(INITIAL), infer={"enumerate": "parallel"})
        for t in pyro.markov(range(len(data))):
            z = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Categorical(EMISSION[z]), obs=data[t])
            z = barrier(z)

    oracle = dist.DiscreteHMM(INITIAL.log(), TRANSITION.log(), dist.Categorical(EMISSION), duration=4).log_prob(data)
    assert abs(evidence_z(model, float(oracle.exp()), particles=8)) < Z
    assert float(Enumeration(model).run().log_evidence) == pytest.approx(float(oracle), abs=1e-5)


DRIFT, SPREAD = torch.tensor([0.9, -0.5]), torch.tensor([0.3, 1.0])
STAY = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
SWITCHING = torch.tensor([0.4, -0.2, 1.0, 0.8])


def switching() -> Tensor:
    """A regime that switches, and a level that moves by it."""
    regime = pyro.sample("regime_init", dist.Categorical(torch.tensor([0.5, 0.5])))
    level = pyro.sample("level_init", dist.Normal(0.0, 1.0))
    for t, y in enumerate(SWITCHING):
        regime = pyro.sample(f"regime_{t}", dist.Categorical(STAY[regime]))
        level = pyro.sample(f"level_{t}", dist.Normal(DRIFT[regime] * level, SPREAD[regime]))
        pyro.sample(f"y_{t}", dist.Normal(level, 0.4), obs=y)
        regime, level = barrier((regime, level))
    return regime


def switching_oracle() -> tuple[float, float]:
    """Evidence, and posterior probability of the second regime at the end: a Kalman filter for each of the 2^5 sequences of regimes."""
    total, second = 0.0, 0.0
    one = torch.eye(1)
    for regimes in itertools.product((0, 1), repeat=len(SWITCHING) + 1):
        p = 0.5 * math.prod(float(STAY[a, b]) for a, b in itertools.pairwise(regimes))
        path = torch.tensor(regimes[1:])
        kalman = dist.GaussianHMM(
            dist.MultivariateNormal(torch.zeros(1), one),
            DRIFT[path].view(-1, 1, 1),
            dist.MultivariateNormal(torch.zeros(1), SPREAD[path].view(-1, 1, 1).square()),
            one,
            dist.MultivariateNormal(torch.zeros(1), one * 0.16),
        )
        mass = p * float(kalman.log_prob(SWITCHING[:, None]).exp())
        total, second = total + mass, second + mass * regimes[-1]
    return total, second / total


def test_switching_model_against_a_bank_of_kalman_filters() -> None:
    pyro.set_rng_seed(2)
    evidence, second = switching_oracle()
    assert abs(evidence_z(switching, evidence, particles=64)) < Z
    posterior = SMC(replicate(switching, 500, 0), 64, max_plate_nesting=1).run()
    excess = ((posterior.weights * posterior.value).sum(0) - second) * posterior.log_evidence.exp() / evidence
    assert abs(float(excess.mean() / (excess.std() / math.sqrt(500)))) < Z
    assert 0.05 < second < 0.95 and float(excess.std()) / math.sqrt(500) < 0.02


class Tracking:
    """The same model for Pyro's filter."""

    def init(self, state: Any) -> None:
        state["z"] = pyro.sample("z_init", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        self.t = 0

    def step(self, state: Any, y: Tensor | None = None) -> None:
        state["z"] = pyro.sample(f"z_{self.t}", dist.MultivariateNormal(state["z"] @ MOTION, NOISE))
        pyro.sample(f"y_{self.t}", dist.Normal((state["z"] @ SEEN)[..., 0], 0.5), obs=y)
        self.t += 1


class Nothing:
    def init(self, state: Any) -> None: ...
    def step(self, state: Any, y: Tensor | None = None) -> None: ...


def test_smc_filter_and_smc_agree_on_one_model() -> None:
    """Filtering means of both against the Kalman filter's: 20 000 particles, 4.9 deviations of a tenth as many draws."""
    pyro.set_rng_seed(3)
    smc = SMCFilter(Tracking(), Nothing(), 20_000, max_plate_nesting=0)
    smc.init()
    for y in TRACK:
        smc.step(y)
    ours = SMC(tracking, 20_000).run()
    last = tracking_oracle().filter(TRACK[:, None])
    bound = Z * last.covariance_matrix.diagonal().sqrt() / math.sqrt(2000)
    assert ((smc.get_empirical()["z"].mean - last.loc).abs() < bound).all()
    assert (((ours.weights[:, None] * ours.value).sum(0) - last.loc).abs() < bound).all()


# Pyro's algorithms on models with barriers -----------------------------------------------------------------------------------------------


def test_stock_hmc_on_a_model_with_barriers() -> None:
    """150 draws; the bound takes 30 of them as independent (false alarm 1e-6 if they are)."""
    pyro.set_rng_seed(4)
    exact = linear_gaussian()
    chain = MCMC(HMC(exact.program, step_size=0.5, num_steps=4), 150, warmup_steps=30, disable_progbar=True)
    chain.run()
    last = chain.get_samples()["z_3"].double()
    variance = float(exact.mean[1] - exact.mean[0] ** 2)
    assert abs(float(last.mean() - exact.mean[0])) < Z * math.sqrt(variance / 30)
    assert 0.3 < float(last.var()) / variance < 3


@pytest.mark.parametrize("kernel", [lambda model: ParticleGibbs(model, 8), lambda model: SuffixMH(model)], ids=["gibbs", "suffix"])
def test_stock_mcmc_drives_our_kernels(kernel: Any) -> None:
    """400 draws; a tenth as independent."""
    pyro.set_rng_seed(5)
    exact = hmm()
    chain = MCMC(kernel(exact.program), 400, warmup_steps=50, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()
    assert set(samples) == {"z_0", "z_1", "z_2", "z_3"}
    found = exact.statistic(samples).mean(0).flatten()
    assert ((found - exact.mean).abs() < Z * (exact.mean * (1 - exact.mean) / 40).sqrt()).all()


def test_stock_importance_and_empirical_marginal() -> None:
    pyro.set_rng_seed(6)
    exact = hmm()
    result = PyroImportance(exact.program, num_samples=200).run()
    weights = torch.stack(result.log_weights).exp().double()
    assert abs(float((weights.mean() - exact.evidence) / (weights.std() / math.sqrt(200)))) < Z
    theirs = EmpiricalMarginal(result, "z_3")
    ours = EmpiricalMarginal(SMC(exact.program, 4000).run(), "z_3")
    for marginal, ess in ((theirs, float(result.get_ESS())), (ours, 400.0)):
        drawn = marginal.sample((4000,))
        found = torch.stack([(drawn == k).double().mean() for k in range(3)])
        p = exact.mean[3:]
        assert ((found - p).abs() < Z * (p * (1 - p) / min(ess, 4000) + p * (1 - p) / 4000).sqrt()).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_stock_predictive_continues_our_posterior(parallel: bool) -> None:
    """Posterior predictive of one more observation: draws of our posterior as ``posterior_samples``."""
    pyro.set_rng_seed(7)
    exact = hmm()
    n = 3000 if parallel else 300

    def longer() -> None:
        z = hidden_markov(torch.tensor(SEQUENCES[0]))
        z = pyro.sample("z_next", dist.Categorical(TRANSITION[z]))
        pyro.sample("y_next", dist.Categorical(EMISSION[z]))

    posterior = SMC(exact.program, 20_000).run()
    particles = torch.multinomial(posterior.weights, n, replacement=True)
    drawn = Predictive(longer, {name: value[particles] for name, value in posterior.sites.items()}, parallel=parallel)()["y_next"]
    p = (exact.mean[3:] @ TRANSITION.double()) @ EMISSION.double()
    found = torch.stack([(drawn == k).double().mean() for k in range(3)])
    assert ((found - p).abs() < Z * (p * (1 - p) * (1 / n + 1 / 2000)).sqrt()).all()


# Handlers --------------------------------------------------------------------------------------------------------------------------------


def test_trace_and_replay_see_an_ordinary_model() -> None:
    pyro.set_rng_seed(8)
    exact = hmm()
    trace = poutine.trace(exact.program).get_trace()
    assert [name for name in trace.nodes if name[0] in "zy"] == [f"{s}_{t}" for t in range(4) for s in "zy"]
    again = poutine.trace(poutine.replay(exact.program, trace)).get_trace()
    assert torch.equal(trace.log_prob_sum(), again.log_prob_sum())
    # A draw of our posterior is a trace like any other.
    posterior = SMC(exact.program, 50).run()
    drawn = posterior()
    replayed = poutine.trace(poutine.replay(exact.program, drawn)).get_trace()
    assert all(replayed.nodes[f"z_{t}"]["value"] == drawn.nodes[f"z_{t}"]["value"] for t in range(4))
    assert replayed.nodes["_RETURN"]["value"] == drawn.nodes["_RETURN"]["value"]


def exact_evidence(model: Any) -> float:
    return float(Enumeration(model).run().log_evidence.exp())


def by_hand(weight: Any, observed: tuple[bool, ...] = (True,) * 4) -> float:
    """Sum over all paths of the hidden Markov model."""
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        prior = math.prod(float(INITIAL[b] if t == 0 else TRANSITION[path[t - 1], b]) for t, b in enumerate(path))
        likelihood = math.prod(float(EMISSION[b, y]) for b, y, seen in zip(path, SEQUENCES[0], observed, strict=True) if seen)
        total += weight(path, prior, likelihood)
    return total


HANDLED: dict[str, tuple[Any, float]] = {
    "condition": (
        lambda model: poutine.condition(model, {"z_1": torch.tensor(2)}),
        by_hand(lambda path, prior, likelihood: prior * likelihood * (path[1] == 2)),
    ),
    "scale": (lambda model: poutine.scale(model, 0.5), by_hand(lambda path, prior, likelihood: math.sqrt(prior * likelihood))),
    "mask": (lambda model: poutine.mask(model, mask=False), 1.0),
    "mask of a tensor": (lambda model: poutine.mask(model, mask=torch.tensor(True)), by_hand(lambda path, p, likelihood: p * likelihood)),
    "block an observation": (
        lambda model: poutine.block(model, hide=["y_2"]),
        by_hand(lambda path, prior, likelihood: prior * likelihood, (True, True, False, True)),
    ),
    "block a latent": (lambda model: poutine.block(model, hide=["z_1"]), by_hand(lambda path, prior, likelihood: prior * likelihood)),
    "uncondition, then condition": (
        lambda model: poutine.condition(poutine.uncondition(model), {f"y_{t}": torch.tensor(SEQUENCES[0][t]) for t in range(2)}),
        by_hand(lambda path, prior, likelihood: prior * likelihood, (True, True, False, False)),
    ),
}


@pytest.mark.parametrize("name", HANDLED)
def test_handlers_around_the_model_change_the_target(name: str) -> None:
    """The target of the handled model, by SMC; by enumeration too where no site is hidden or masked."""
    pyro.set_rng_seed(9)
    handle, exact = HANDLED[name]
    handled = handle(hmm().program)
    if name in ("condition", "scale"):
        assert exact_evidence(handled) == pytest.approx(exact, rel=1e-5)
    if name == "mask":
        assert float(SMC(handled, 8).run().log_evidence) == 0.0
    else:
        assert abs(evidence_z(handled, exact, particles=16)) < Z


def test_handlers_around_a_run_see_nothing_of_it() -> None:
    """A run inside a traced, conditioned program neither leaks its sites nor catches the conditions."""
    pyro.set_rng_seed(10)
    exact = hmm()

    def outer() -> Tensor:
        z_hat = SMC(replicate(exact.program, 300, 0), 8, max_plate_nesting=1).run().log_evidence.exp()
        return pyro.deterministic("z_hat", z_hat.mean())

    trace = poutine.trace(poutine.condition(outer, {"z_0": torch.tensor(0)})).get_trace()
    assert [name for name in trace.nodes if not name.startswith("_")] == ["z_hat"]
    assert float(trace.nodes["z_hat"]["value"] / exact.evidence) == pytest.approx(1.0, abs=0.1)
