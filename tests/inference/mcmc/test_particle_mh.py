"""PIMH and PMMH: exact distributions with all randomness enumerated, then chains from exact draws against the exact posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_llm import Context, LLMStep
from ppl_llm.inference import PIMH, PMMH, SMC, SMCFailed, Trajectory, barrier
from ppl_llm.inference.handlers.parameter_messenger import ParameterMessenger, ParameterReferenceMessenger
from ppl_llm.inference.mcmc.particle_mh import FilterState, ParticleMH
from ppl_llm.inference.particles.history import Site
from ppl_llm.inference.particles.weighted_particles import WeightedParticles
from ppl_llm.inference.particles.weights import Weights
from ppl_llm.inference.posterior.particle_posterior import ParticlePosterior
from tests.helpers.exact import PAD, Chain, chains, enumerate_sweep, estimator_error
from tests.helpers.exact_conditional import codes, conditional_outcomes, grid, invariant_distribution
from tests.helpers.mutants import WRONG_PIMH, WRONG_PMMH
from tests.helpers.programs_that_stop import Silent, Stopping, three_symbols
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, solve, trajectories
from tests.inference.mcmc.test_suffix_mh import bound, step_values
from tests.inference.test_smc_exact import EXACT, spiky

exactly = settings(max_examples=4)


def columns_of(posterior: ParticlePosterior, index: Tensor, keep: Any = lambda value: True) -> ParticlePosterior:
    """The populations ``index`` of the plate; sites that every particle reached done are left out where ``keep`` says so."""
    particles = posterior.particles
    return ParticlePosterior(
        WeightedParticles(
            Weights(particles.weights.log_weights[:, index]),
            particles.plate_dims,
            tuple(Site(name, value[:, index], None, 0) for name, value in posterior.sites.items() if keep(value[:, index])),
            value=posterior.value[:, index],
            lengths=particles.lengths[:, index],  # type: ignore[index]
            log_likelihood=particles.log_likelihood[:, index],  # type: ignore[index]
        )
    )


def pimh_errors(model: Chain, scheme: str, kernel: type[PIMH] = PIMH) -> tuple[float, float]:
    """Every (present filter, proposed filter, acceptance) as a column, through the real iteration from the extended invariant distribution.

    :returns: largest error of the distribution of trajectories, and of the distribution of the evidence estimate.
    """
    probs, posterior = enumerate_sweep(model, 2, scheme, 1.0)
    keep = probs > 0
    count = int(keep.sum())
    living = keep.nonzero()[:, 0]
    probs, posterior = probs[living], columns_of(posterior, living)
    invariant = probs * posterior.log_evidence.exp()
    z = float(invariant.sum())
    invariant = invariant / z
    which, proposed, accepted = grid([count, count, 2])
    has_value = (lambda value: bool((value != PAD).any())) if isinstance(model, Stopping) else (lambda value: True)
    weight: list[Tensor] = []

    class Enumerated(kernel):  # type: ignore[misc, valid-type]
        def filter(self, *args: Any, **kwargs: Any) -> FilterState:
            return FilterState(columns_of(posterior, proposed, has_value), {})

        def draw_accepted(self, probability: Tensor) -> Tensor:
            weight.append(torch.where(accepted == 1, probability, 1 - probability))
            return accepted == 1

    state = Trajectory({})
    state.filter = FilterState(columns_of(posterior, which, has_value), {})
    after = Enumerated(model, 2, resampler=scheme, max_plate_nesting=1).sweep(state, len(which))
    mass = invariant[which] * probs[proposed] * weight[0]
    trajectories, pi = invariant_distribution(model)
    v, length = model.num_symbols, model.length
    table = torch.zeros((v + 1) ** length, dtype=torch.float64)
    done = torch.full(after.log_weights.shape, PAD)
    code = codes([after.sites.get(f"x_{t}", done) for t in range(length)], v)
    table.index_add_(0, code.flatten(), (mass * after.weights).flatten())
    table.index_add_(0, codes(list(trajectories.T), v), -pi)
    levels = [0.25, 0.5, 0.75]
    log_z = posterior.log_evidence
    cuts = [float(log_z.sort().values[int(level * count)]) + 1e-9 for level in levels]
    drift = [abs(float(mass[after.log_evidence < cut].sum() - invariant[log_z < cut].sum())) for cut in cuts]
    return float(table.abs().max()), max(drift)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "ssp"])
@exactly
@given(data=chains(length=2))
def test_pimh_keeps_the_extended_distribution(scheme: str, data: Chain) -> None:
    """Trajectories and evidence estimates have the distribution of the extended target after an iteration: all 3000 to 18 000 outcomes."""
    data.last_barrier = False
    assert max(pimh_errors(data, scheme)) < EXACT


@pytest.mark.parametrize("kind", [Stopping, Silent])
def test_pimh_joins_filters_of_different_lengths(kind: type[Stopping]) -> None:
    """Populations accept on their own; a filter lacks the sites that all its particles reached done."""
    model = three_symbols(2, True, kind=kind)
    assert max(pimh_errors(model, "systematic")) < EXACT


@pytest.mark.parametrize("name", WRONG_PIMH)
def test_rejects_wrong_pimh(name: str) -> None:
    model = Chain(spiky().init, spiky().transition, spiky().potentials[:2], False, last_barrier=False)
    assert max(pimh_errors(model, "systematic")) < EXACT
    assert pimh_errors(model, "systematic", WRONG_PIMH[name])[0] > 5e-3


@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual"])
def test_a_filter_drawn_given_its_trajectory(scheme: str) -> None:
    """A state without a filter gets one of the extended distribution: E[1 / Z-hat] = 1 / Z and E[Z-hat] = E_filter[Z-hat^2] / Z."""
    model = Chain(spiky().init, spiky().transition, spiky().potentials[:2], False, last_barrier=False)
    references, pi = invariant_distribution(model)
    z = sum(model.paths().values())
    which, probs, posterior = conditional_outcomes(model, 2, scheme, 1.0, references, messenger=ParameterReferenceMessenger)
    estimate = posterior.log_evidence.exp()
    free_probs, free = enumerate_sweep(model, 2, scheme, 1.0)
    assert abs(float((pi[which] * probs / estimate).sum()) * z - 1) < EXACT
    assert abs(float((pi[which] * probs * estimate).sum()) - float((free_probs * free.log_evidence.exp() ** 2).sum()) / z) < EXACT


@dataclass
class Calibrated(Chain):
    """A chain whose potentials are raised to a power with a Gamma prior; three parameters' worth of supports."""

    def __call__(self, columns: int) -> Tensor:
        with pyro.plate("columns", columns, dim=-1):
            two = torch.tensor(2.0, dtype=torch.float64)
            self.power = pyro.sample("power", dist.Gamma(two, 1.5 * two))
            self.shift = pyro.sample("shift", dist.Uniform(-self.power, self.power))
            return self.walk(torch.Size([columns]))

    def log_factor(self, t: int, code: Tensor, done: Tensor) -> Tensor:
        return torch.where(done, 0.0, self.power * self.potentials[t][code].log() + self.shift * (code % 2))


@exactly
@given(data=chains(length=2), u=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_a_filter_estimates_the_density_of_its_parameters(data: Chain, u: tuple[float, float]) -> None:
    """E[mean weight] = p(theta) Z(theta) |d theta / d u|, with a support that depends on another parameter."""
    model = Calibrated(data.init, data.transition, data.potentials, data.ends, last_barrier=False)

    def mutate(smc: SMC) -> None:
        columns = grid([2] * (2 * 2) + [2]).shape[1]
        given = {name: torch.full((columns,), value, dtype=torch.float64) for name, value in zip(("power", "shift"), u, strict=True)}
        smc.messenger = lambda: ParameterMessenger(smc.options, parameters=("power", "shift"), unconstrained=given)  # type: ignore

    probs, posterior = enumerate_sweep(model, 2, "systematic", 1.0, mutate=mutate)
    power, unit = math.exp(u[0]), 1 / (1 + math.exp(-u[1]))
    shift = -power + 2 * power * unit
    at = [torch.exp(power * g.log() + shift * (torch.arange(len(g)).double() % 2)) for g in data.potentials]
    z = sum(Chain(data.init, data.transition, at, data.ends).paths().values())
    prior = 9 * power * math.exp(-3 * power) / (2 * power)
    jacobian = power * 2 * power * unit * (1 - unit)
    expected = prior * jacobian * z
    assert abs(float((probs * posterior.log_evidence.exp()).sum()) / expected - 1) < EXACT
    assert torch.allclose(posterior.sites["power"], torch.tensor(power).double()) and torch.allclose(
        posterior.sites["shift"], torch.tensor(shift).double()
    )


def test_without_parameters_the_filter_is_the_ordinary_one() -> None:
    model = spiky()

    def mutate(smc: SMC) -> None:
        smc.messenger = lambda: ParameterMessenger(smc.options)  # type: ignore[method-assign]

    assert estimator_error(model, *enumerate_sweep(model, 2, "systematic", 0.7, mutate=mutate)) < EXACT


# The temperature of a reward model's calibration, on a language model
LABELS = (1.0, 0.0, 1.0)  # what an oracle said of each step


def calibrated(replicates: int) -> Context:
    """Reasoning with log-odds divided by a temperature with a Gamma prior."""
    with pyro.plate("replicates", replicates, dim=-1):
        temperature = pyro.sample("temperature", dist.Gamma(torch.tensor(3.0).double(), torch.tensor(3.0).double()))
        ctx = LM.start(["a"] * replicates)
        for t in range(MAX_STEPS):
            ctx = ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, ";", MAX_TOKENS, TEMPERATURE)), stop=";")
            z = 3 * PRM.step_log_odds(ctx)[..., -1] / temperature
            log_odds = z if LABELS[t] else -z
            pyro.factor(f"accept_{t}", torch.where(ctx.advanced, logsigmoid(log_odds), 0.0))
            ctx = barrier(ctx)
    return ctx


def exact_calibration(points: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Temperatures ``[G]`` on a grid, their posterior ``[G]``, and that of trajectories given each ``[G, R]``: quadrature, enumeration."""
    temperature = torch.linspace(0.0, 12.0, points + 1, dtype=torch.float64)[1:] - 6.0 / points
    log_joint = []
    for _, _, p, scores, _ in trajectories():
        z = torch.tensor(scores, dtype=torch.float64)
        signs = torch.tensor([1.0 if label else -1.0 for label in LABELS[: len(scores)]], dtype=torch.float64)
        log_joint.append(math.log(p) + logsigmoid(3 * signs * z / temperature[:, None]).sum(-1))
    table = torch.stack(log_joint, -1)
    log_posterior = table.logsumexp(-1) + 2 * temperature.log() - 3 * temperature
    return temperature, log_posterior.softmax(0), table.softmax(-1)


def calibration_chi2(kernel: PMMH, replicates: int, sweeps: int) -> tuple[float, float]:
    """Chi-square over 20 bins of temperature after some iterations from exact draws; fraction of chains that moved."""
    temperature, posterior, given = exact_calibration()
    where = torch.multinomial(posterior, replicates, replacement=True)
    path = torch.multinomial(given[where], 1)[:, 0]
    steps = torch.stack([step_values(tokens) for tokens, *_ in trajectories()])[path]
    width = float(temperature[1] - temperature[0])
    start = temperature[where] + (torch.rand(replicates, dtype=torch.float64) - 0.5) * width
    state = Trajectory({"temperature": start, **{f"step_{t}": steps[:, t] for t in range(MAX_STEPS)}})
    for _ in range(sweeps):
        _, state = kernel.step(state, replicates)
    edges = (posterior.cumsum(0)[:, None] < torch.arange(1, 20) / 20).sum(0)
    bins = torch.bucketize(state["temperature"], temperature[edges] + width / 2)
    expected = replicates * torch.diff(torch.cat([torch.zeros(1), posterior.cumsum(0)[edges], torch.ones(1)]))
    counts = torch.bincount(bins, minlength=20)
    return float(((counts - expected) ** 2 / expected).sum()), float((state["temperature"] != start).double().mean())


def test_pmmh_finds_the_temperature_of_a_calibration() -> None:
    """2000 chains keep their distribution for three iterations of N = 2 (false alarm 1e-6)."""
    pyro.set_rng_seed(0)
    chi2, moved = calibration_chi2(PMMH(calibrated, 2, ["temperature"], step_size=1.0, max_plate_nesting=1), 2000, 3)
    assert chi2 < bound(19) and moved > 0.5
    temperature, posterior, _ = exact_calibration()
    prior = (2 * temperature.log() - 3 * temperature).softmax(0)
    assert float((prior - posterior).abs().sum()) / 2 > 0.05


@pytest.mark.parametrize("name", WRONG_PMMH)
def test_rejects_wrong_pmmh(name: str) -> None:
    pyro.set_rng_seed(0)
    wrong = WRONG_PMMH[name](calibrated, 1, ["temperature"], step_size=1.0, max_plate_nesting=1)
    chi2, _ = calibration_chi2(wrong, 2000, 3)
    assert chi2 > 2 * bound(19)


# As a user meets them
def line(observations: list[float]) -> Tensor:
    noise = pyro.sample("noise", dist.Gamma(4.0, 4.0))
    z = torch.zeros(())
    for t, y in enumerate(observations):
        z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(z, noise), obs=torch.tensor(y))
        z = barrier(z)
    return z


def test_pmmh_adapts_and_pools_all_particles() -> None:
    pyro.set_rng_seed(1)
    kernel = PMMH(line, 8, ["noise"], step_size=20.0)
    posterior = kernel.run(60, [0.5, -1.0, 2.0], warmup_steps=50)
    assert posterior.step_size_scale < 0.5 and 0.1 < posterior.acceptance_rate < 0.7
    assert len(posterior.iterations) == 60
    assert posterior.num_particles == 8 * len(posterior.parts) and len(posterior.parts) < 60
    assert float(posterior.weights.sum()) == pytest.approx(1.0)
    fixed = PMMH(line, 8, ["noise"], adapt_step_size=False)
    assert fixed.run(5, [0.5], warmup_steps=5).step_size_scale == 1.0
    with pytest.raises(ValueError, match="gives no evidence"):
        _ = posterior.log_evidence


@pytest.mark.parametrize("make", [lambda model: PIMH(model, 4), lambda model: PMMH(model, 4, ["noise"])])
def test_pyro_drives_both(make: Any) -> None:
    pyro.set_rng_seed(2)
    chain = MCMC(make(line), num_samples=40, warmup_steps=10, disable_progbar=True)
    chain.run([0.5, -1.0, 2.0])
    samples = chain.get_samples()
    assert samples["noise"].shape == (40,) and samples["z_2"].shape == (40,)
    assert 3 < len(samples["z_2"].unique()) <= 40
    start = {"noise": torch.tensor(1.0), **{f"z_{t}": torch.tensor(0.0) for t in range(3)}}
    chain = MCMC(make(line), num_samples=3, warmup_steps=0, initial_params=start, disable_progbar=True)
    chain.run([0.5, -1.0, 2.0])


def test_one_particle_is_the_independence_sampler() -> None:
    """One particle: acceptance with the likelihood ratio. 3000 chains from exact draws (false alarm 1e-6)."""
    pyro.set_rng_seed(3)
    model = spiky()
    references, pi = invariant_distribution(model)
    drawn = torch.multinomial(pi, 3000, replacement=True)
    kernel = PIMH(model, 1, max_plate_nesting=1)
    state = Trajectory({f"x_{t}": references[drawn, t] for t in range(3)})
    for _ in range(3):
        _, state = kernel.step(state, 3000)
    after = codes([state[f"x_{t}"] for t in range(3)], 2)
    counts = torch.stack([(after == code).sum() for code in codes(list(references.T), 2)])
    assert float(((counts - 3000 * pi) ** 2 / (3000 * pi)).sum()) < bound(len(pi) - 1)
    assert 0.1 < state.chain.acceptance_rate.mean() < 1.0


def test_pimh_on_a_reasoning_program() -> None:
    pyro.set_rng_seed(4)
    kernel = PIMH(solve, 8)
    posterior = kernel.run(20, "a", warmup_steps=2)
    assert 0.3 < posterior.acceptance_rate < 1.0
    assert posterior.lengths.shape == (posterior.num_particles,)
    assert posterior.answers().prob(None) == pytest.approx(1.0)


def test_shared_parameters_make_one_population() -> None:
    """A parameter outside the plate: its two elements are accepted together."""
    pyro.set_rng_seed(5)

    def shared(per_problem: bool) -> Tensor:
        prior = dist.Normal(0.0, 1.0)
        loc = None if per_problem else pyro.sample("loc", prior)
        with pyro.plate("problems", 2, dim=-1):
            loc = pyro.sample("loc", prior) if loc is None else loc
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([1.0, -1.0]))
            return barrier(z)

    kernel = PMMH(shared, 4, ["loc"], max_plate_nesting=1)
    together, apart = kernel.run(10, False), kernel.run(10, True)
    assert together.log_weights.shape[1:] == () and apart.log_weights.shape[1:] == (2,)
    same = apart.iterations[-1].sites["loc"]
    assert (same == same[:1]).all()


def test_dead_filters_are_rejected() -> None:
    """A filter that dies counts as one of evidence zero; other populations live on."""
    pyro.set_rng_seed(6)

    def hard() -> Tensor:
        with pyro.plate("problems", 50, dim=-1):
            x = pyro.sample("x", dist.Bernoulli(0.5))
            pyro.factor("f", torch.where(x == 1, 0.0, -math.inf))
            x = barrier(x)
            return pyro.sample("more", dist.Bernoulli(0.5))

    state = Trajectory({"x": torch.ones(50), "more": torch.zeros(50)})
    kernel = PIMH(hard, 1, max_plate_nesting=1)
    for _ in range(5):
        posterior, state = kernel.step(state)
        assert (state["x"] == 1).all() and (posterior.log_evidence == 0).all()
    assert 0.3 < state.chain.acceptance_rate.mean() < 0.7
    chain = PIMH(hard, 1, max_plate_nesting=1).run(3)
    alive = torch.stack([~iteration.dead for iteration in chain.iterations])
    assert int((~alive[0]).sum()) > 0 and torch.equal(chain.dead, ~alive.any(0))  # some start dead, and are replaced once another lives
    assert (chain.weights.sum(0)[~chain.dead] == 1).all() and (chain.weights[chain.sites["x"] == 0] == 0).all()
    impossible = poutine.condition(hard, {"x": torch.zeros(50)})
    with pytest.raises(SMCFailed, match="all 1 particles have weight zero after site 'f' in each of 50 populations"):
        PIMH(impossible, 1, max_plate_nesting=1).run(3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["z_1"], "parameter 'z_1' is no latent site before the first barrier; the latent sites there are 'noise', 'z_0'"),
        (["nois"], "parameter 'nois' is no latent site before the first barrier"),
        (["y_0"], "parameter 'y_0' is observed"),
        ([], "parameters must name at least one"),
    ],
)
def test_errors_name_the_parameter(parameters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PMMH(line, 4, parameters).run(2, [0.5, 1.0])


def test_errors_of_step_sizes_and_discrete_parameters() -> None:
    with pytest.raises(ValueError, match=r"step_size must be a positive number, got -1\.0 for 'noise'"):
        PMMH(line, 4, ["noise"], step_size=-1.0)
    with pytest.raises(ValueError, match="step_size has no entry for parameter 'noise'"):
        PMMH(line, 4, ["noise"], step_size={"sd": 1.0})
    with pytest.raises(ValueError, match="target_accept_prob must lie"):
        PMMH(line, 4, ["noise"], target_accept_prob=1.0)
    with pytest.raises(ValueError, match="parameter 'x_0' is discrete"):
        PMMH(lambda: spiky()(1), 4, ["x_0"], max_plate_nesting=1).run(2)
    with pytest.raises(ValueError, match="'ssp' has no conditional form"):
        PIMH(line, 4, resampler="ssp").step(Trajectory({"noise": torch.tensor(1.0)}), [0.5])


@pytest.mark.parametrize("make", [lambda model: PIMH(model, 2), lambda model: PMMH(model, 2, ["noise"])])
def test_interruption_keeps_what_there_is(make: Any) -> None:
    calls = []

    def stops(observations: list[float]) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return line(observations)

    kernel: ParticleMH = make(stops)
    with pytest.raises(KeyboardInterrupt) as caught:
        kernel.run(100, [0.5, 1.0])
    assert len(caught.value.partial_posterior.iterations) == 4  # type: ignore[attr-defined]
