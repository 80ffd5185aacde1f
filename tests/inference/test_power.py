"""Power targets, bridges of powers, beginnings of models and particle filters that move: all randomness enumerated, to 1e-10."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import (
    PIMH,
    PMMH,
    RESAMPLERS,
    SMC,
    BeamSearch,
    BestOfN,
    Enumeration,
    ParticleGibbs,
    PrefixWalk,
    RejuvenateMessenger,
    SuffixMH,
    TemperMessenger,
    barrier,
    power,
    until,
)
from ppl_llm.inference.mcmc.rejuvenation import Rejuvenation
from tests.helpers.exact import Chain, chains, estimator_error, simplex, spiky
from tests.helpers.exact_power import PowerChain, enumerate_moves, telling
from tests.helpers.power_mutants import WRONG_MOVES, MovesForTheWholeModel

EXACT = 1e-10
exactly = settings(max_examples=3, deadline=None, derandomize=True)
PROPOSAL = [torch.tensor(p, dtype=torch.float64) for p in ([0.3, 0.7], [0.6, 0.4], [0.5, 0.5])]
POWERS = st.tuples(st.sampled_from([0.5, 2.0, 4.0]), st.sampled_from([None, (1.2,), (1.5, 2.5), (3.0, 0.7)]))


def told(model: Chain) -> Chain:
    """A chain that ends has a state that says so."""
    return Chain(model.init, model.transition, model.potentials, model.ends, telling if model.ends else barrier, model.last_barrier)


# Exact ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ess_threshold", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scheme", RESAMPLERS)
@exactly
@given(model=chains(length=2), powers=POWERS, rewarded=st.booleans())
def test_filters_for_power_targets_are_unbiased(scheme: str, ess_threshold: float, model: Chain, powers: Any, rewarded: bool) -> None:
    """``E[Z-hat sum W f] = Z pi(f)`` without moves: 15 x 3 models, with a reward and without, with a bridge and without."""
    potentials = model.potentials if rewarded else [torch.ones_like(g) for g in model.potentials]
    chain = PowerChain.of(told(Chain(model.init, model.transition, potentials, model.ends)), *powers)
    assert estimator_error(chain, *enumerate_moves(chain, 2, scheme, ess_threshold)) < EXACT


@pytest.mark.parametrize("ess_threshold", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scheme", RESAMPLERS)
@settings(exactly, max_examples=2)
@given(model=chains(length=2), powers=POWERS, proposal=st.lists(simplex(2), min_size=2, max_size=2), tells=st.booleans())
def test_moves_keep_estimates_unbiased(
    scheme: str, ess_threshold: float, model: Chain, powers: Any, proposal: list[Tensor], tells: bool
) -> None:
    """Two particles moved at the second barrier: draws, resampling, cuts, proposals and acceptances, 15 x 2 models of 65,536 outcomes."""
    chain = PowerChain.of(told(model) if tells else model, *powers, proposal)
    assert estimator_error(chain, *enumerate_moves(chain, 2, scheme, ess_threshold, moving=(2,))) < EXACT


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("bridge", [None, (1.3, 2.0)])
@pytest.mark.parametrize("proposal", [None, PROPOSAL])
def test_moves_at_every_barrier(ends: bool, bridge: Any, proposal: Any) -> None:
    """Moves at both barriers of two steps (262,144 outcomes), and at the second of three steps without a last barrier."""
    base = told(spiky(ends, seed=1))
    for length, moving, last in ((2, (1, 2), True), (3, (2,), False)):
        short = Chain(base.init, base.transition, base.potentials[:length], ends, base.barriers, last)
        chain = PowerChain.of(short, 3.0, bridge, proposal)
        assert estimator_error(chain, *enumerate_moves(chain, 2, "systematic", 0.7, moving=moving)) < EXACT


def test_the_estimate_at_a_barrier_is_that_of_the_bridge() -> None:
    """A filter that is stopped there estimates ``p(x_{1:k})^alpha_k prod G``, without bias."""
    base = spiky(ends=False, seed=1)
    whole = PowerChain.of(base, 3.0, (1.5, 2.0), PROPOSAL)
    for k in (1, 2):
        short = Chain(base.init, base.transition, base.potentials[:k], False)
        exact = PowerChain.of(short, whole.power_at(k), None, PROPOSAL[:k])
        # The beginning of the bridged model, and a model of the beginning at the bridge's power.
        found = float(Enumeration(until(power(base.walk, 3.0, (1.5, 2.0)), k)).run().log_evidence.exp())
        assert found == pytest.approx(sum(exact.paths().values()), rel=1e-6)
        smc = SMC(power(base, 3.0, (1.5, 2.0)), 4, ess_threshold=1.0, max_plate_nesting=1)
        pyro.set_rng_seed(k)
        state = [posterior for posterior, _ in zip(smc.iterate(60_000), range(k), strict=False)][-1]
        ratio = state.log_evidence.exp() / found
        assert abs(float((ratio.mean() - 1) / (ratio.std() / 60_000**0.5))) < 5


# Wrong ----------------------------------------------------------------------------------------------------------------------------------


def moves_error(handler: type[RejuvenateMessenger] | None = None) -> float:
    """The worst of four models that end and that do not."""
    errors = []
    for ends, seed, moving in ((False, 1, (1, 2)), (True, 2, (2,)), (False, 2, (1,)), (True, 0, (1, 2))):
        base = told(spiky(ends, seed))
        short = Chain(base.init, base.transition, base.potentials[:2], ends, base.barriers)
        chain = PowerChain.of(short, 2.0, (1.2, 1.5), PROPOSAL)
        errors.append(estimator_error(chain, *enumerate_moves(chain, 2, "systematic", 0.8, moving=moving, handler=handler)))
    return max(errors)


def test_the_right_moves_pass_where_the_wrong_fail() -> None:
    assert moves_error() < EXACT


@pytest.mark.parametrize("name", WRONG_MOVES)
def test_rejects_wrong_moves(name: str) -> None:
    assert moves_error(WRONG_MOVES[name]) > 1e-3


REPLICAS = 50_000


def scores(handler: type[RejuvenateMessenger], ends: bool, moves: int = 1, kernel: Any = SuffixMH) -> list[float]:
    """z-scores of the evidence and of each path, in one batch of replicas."""
    base = told(spiky(ends, seed=2))
    chain = PowerChain.of(base, 2.0, (1.2,))
    exact, pyro_seed = chain.paths(), 5
    pyro.set_rng_seed(pyro_seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rejuvenation, "handler", handler)
        smc = SMC(power(base, 2.0, (1.2,)), 3, ess_threshold=0.8, max_plate_nesting=1, rejuvenate=kernel, moves=moves)
        posterior = smc.run(REPLICAS)
    evidence, total = posterior.log_evidence.exp(), sum(exact.values())
    estimates, wanted = [evidence / total], [1.0]
    for path, mass in exact.items():
        there = torch.stack([posterior.sites[f"x_{t}"] == x for t, x in enumerate(path)]).all(0)
        estimates.append((posterior.weights * there).sum(0) * evidence / total)
        wanted.append(mass / total)
    return [float((e.mean() - w) / (e.std() / REPLICAS**0.5)) for e, w in zip(estimates, wanted, strict=True)]


KERNELS = {
    "SuffixMH": SuffixMH,
    "ParticleGibbs": partial(ParticleGibbs, num_particles=3),
    "ParticleGibbs, systematic": partial(ParticleGibbs, num_particles=2, resampler="systematic", ess_threshold=1.0),
    "PrefixWalk": partial(PrefixWalk, steps=6),
}


@pytest.mark.parametrize("name", KERNELS)
def test_monte_carlo_with_every_kernel(name: str) -> None:
    """Five z-tests a kernel of |z| < 4.5: a false alarm with probability 1.4e-4 for all."""
    assert max(map(abs, scores(RejuvenateMessenger, True, 2, KERNELS[name]))) < 4.5


def test_monte_carlo_rejects_moves_for_the_whole_model() -> None:
    """By a kernel that does not count steps; SuffixMH, which does, refuses executions that are longer than the beginning."""
    kernel = KERNELS["ParticleGibbs"]
    assert max(map(abs, scores(RejuvenateMessenger, False, kernel=kernel))) < 4.5
    assert max(map(abs, scores(MovesForTheWholeModel, False, kernel=kernel))) > 10


# Targets --------------------------------------------------------------------------------------------------------------------------------


def test_a_power_is_a_tempered_prior() -> None:
    """The same log-densities under Pyro's own tracing, whatever the bridge; observed sites are as they are."""
    base = spiky(ends=False)
    for model in (power(base.walk, 3.0), power(base.walk, 3.0, bridge=4)):
        trace = poutine.trace(model).get_trace()
        plain = poutine.trace(
            poutine.condition(base.walk, {n: s["value"] for n, s in trace.nodes.items() if n.startswith("x_")})
        ).get_trace()
        expected = sum(plain.nodes[f"x_{t}"]["fn"].log_prob(trace.nodes[f"x_{t}"]["value"]) for t in range(3)) * 3
        assert trace.log_prob_sum(lambda name, site: name.startswith("x_")) == pytest.approx(float(expected))
        assert trace.log_prob_sum(lambda name, site: name.startswith("y_")) == pytest.approx(
            float(plain.log_prob_sum(lambda name, site: name.startswith("y_")))
        )
    tempered = Enumeration(TemperMessenger(prior=3.0)(base.walk)).run()
    torch.testing.assert_close(Enumeration(power(base.walk, 3.0, bridge=2)).run().log_evidence, tempered.log_evidence)


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda model: SuffixMH(model),
        lambda model: ParticleGibbs(model, 3, ess_threshold=1.0),
        lambda model: ParticleGibbs(model, 3, ess_threshold=1.0, ancestor_sampling=True),
        lambda model: PIMH(model, 3),
    ],
)
def test_chains_for_a_bridged_target(algorithm: Any) -> None:
    """Started from exact draws they stay there: z-tests of eight paths, |z| < 4.5 in 20,000 replicas each; false alarms 5e-5 a chain."""
    base = spiky(ends=False, seed=2)
    chain = PowerChain.of(base, 2.0, (1.1, 1.5))
    exact = chain.paths()
    pyro.set_rng_seed(0)
    count = 20_000
    kernel = algorithm(power(base, 2.0, (1.1, 1.5)))
    kernel.max_plate_nesting = 1
    options = getattr(kernel, "options", None)
    if options is not None:
        kernel.options = type(options)(**{**vars(options), "max_plate_nesting": 1})
    probs = torch.tensor(list(exact.values())) / sum(exact.values())
    drawn = torch.tensor(list(exact))[torch.multinomial(probs, count, replacement=True)]
    state: Any = kernel.start(count)
    state.update({f"x_{t}": drawn[:, t] for t in range(3)})
    state.length, state.filter = torch.full((count,), 3), None
    for _ in range(3):
        posterior, state = kernel.step(state, count)
    for (path, _), p in zip(exact.items(), probs.tolist(), strict=True):
        there = torch.stack([posterior.sites[f"x_{t}"] == x for t, x in enumerate(path)]).all(0)
        mean = (posterior.weights * there).sum(0)
        assert abs(float((mean.mean() - p) / (mean.std() / count**0.5))) < 4.5, path


def test_until_is_the_beginning() -> None:
    seen = []

    def model() -> Tensor:
        x = torch.zeros(())
        for t in range(4):
            x = x + pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            seen.append(t)
            x = barrier(x)
        return torch.tensor(-1.0)

    value = until(model, 2)()
    assert seen == [0, 1] and value != -1
    assert until(until(model, 2), 3)() != -1 and seen == [0, 1, 0, 1]
    assert until(model, 9)() != -1  # the state of its last barrier
    assert until(lambda: torch.tensor(7.0), 1)() == 7
    inner = until(lambda: (until(model, 1)(), model())[1], 2)
    seen.clear()
    inner()
    assert seen == [0, 0]  # the first barrier of the outer one is the end of the inner one


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def problems(count: int) -> Tensor:
    """Two plates of problems: an outer one without a plate site of its own, each with three steps."""
    with pyro.plate("problems", count, dim=-1):
        x = torch.zeros(count, dtype=torch.float64)
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(x, 0.7), obs=torch.ones(count, dtype=torch.float64))
            x = barrier(x)
        return x


def test_plates_islands_and_the_audit() -> None:
    pyro.set_rng_seed(0)
    smc = SMC(
        power(problems, 2.0, bridge=2), 6, ess_threshold=0.7, islands=2, max_plate_nesting=1, rejuvenate=SuffixMH, moves=2, audit=True
    )
    posterior = smc.run(4)
    assert posterior.weights.shape == (12, 4) and posterior.audit is not None and posterior.audit.num_sites == 6
    rates = [record.move_rate for record in posterior.islands[0].particles.records]
    assert all(rate is not None and rate.shape == (4,) and (rate > 0).all() for rate in rates)


def test_move_every() -> None:
    posterior = SMC(problems, 6, max_plate_nesting=1, rejuvenate=SuffixMH, move_every=2).run(2)
    assert [record.move_rate is not None for record in posterior.particles.records] == [False, True, False]


def test_slices_and_a_file_give_the_same(tmp_path: Any) -> None:
    smc = SMC(power(problems, 2.0, bridge=3), 5, ess_threshold=0.7, max_plate_nesting=1, rejuvenate=SuffixMH, moves=2)
    pyro.set_rng_seed(3)
    whole = smc.run(3)
    pyro.set_rng_seed(3)
    for k, state in enumerate(smc.iterate(3)):
        if k == 1:
            state.save(tmp_path / "state")
    for other in (state, smc.resume(tmp_path / "state")):
        torch.testing.assert_close(other.log_weights, whole.log_weights, rtol=0, atol=0)
        assert all(torch.equal(other.sites[name], value) for name, value in whole.sites.items())
    with pytest.raises(ValueError, match="rejuvenation"):
        SMC(power(problems, 2.0, bridge=3), 5, ess_threshold=0.7, max_plate_nesting=1).resume(tmp_path / "state")


def test_ctrl_c_in_a_move_leaves_the_last_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    original = SuffixMH.sweep
    monkeypatch.setattr(SuffixMH, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        SMC(problems, 4, max_plate_nesting=1, rejuvenate=SuffixMH).run(2)
    partial_posterior = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert partial_posterior.num_barriers == 1 and partial_posterior.sites.keys() == {"x_0"}
    assert partial_posterior.particles.records[0].move_rate is not None


def deadly(count: int) -> Tensor:
    """The second of the problems has a step that nothing satisfies."""
    with pyro.plate("problems", count, dim=-1):
        x = torch.zeros(count, dtype=torch.float64)
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            possible = (torch.arange(count) != 1) | (t != 1)
            pyro.factor(f"y_{t}", torch.where(possible & (x > -1), 0.0, -torch.inf))
            x = barrier(x)
        return x


@pytest.mark.parametrize("kernel", [SuffixMH, partial(ParticleGibbs, num_particles=3), partial(PrefixWalk, steps=4)])
def test_dead_populations_stay_dead_and_the_others_live(kernel: Any) -> None:
    pyro.set_rng_seed(1)
    posterior = SMC(deadly, 6, ess_threshold=0.7, max_plate_nesting=1, rejuvenate=kernel, moves=2).run(3)
    assert posterior.dead.tolist() == [False, True, False]
    assert all((posterior.sites[f"x_{t}"][:, [0, 2]] > -1)[posterior.weights[:, [0, 2]] > 0].all() for t in range(3))


def test_searches_see_the_whole_power() -> None:
    """A bridge is for resampling: the scores of a search are those of the target."""
    pyro.set_rng_seed(0)
    bridged = BeamSearch(power(problems, 2.0, bridge=3), 2, 2, max_plate_nesting=1).run(2)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(bridged.scores, BeamSearch(power(problems, 2.0), 2, 2, max_plate_nesting=1).run(2).scores)
    assert BestOfN(power(problems, 2.0, bridge=3), 4, max_plate_nesting=1).run(2).weights.sum() == pytest.approx(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(problems, 0.0), "power must be a finite number above 0, got 0.0"),
        (lambda: power(problems, 2.0, bridge=0), "bridge must be a number of steps, at least 1, or powers above 0.*got 0"),
        (lambda: power(problems, 2.0, bridge=[1.0, -1.0]), "bridge must be .* got"),
        (lambda: power(problems, 2.0, bridge="x"), "bridge must be .* got 'x'"),
        (lambda: power(3, 2.0), "model must be a function"),
        (lambda: until(problems, 0), "barriers must be an integer of at least 1, got 0"),
        (lambda: power(power(problems, 2.0, bridge=2), 2.0, bridge=2)(1), "site 'x_0' has a bridge of powers already"),
        (lambda: SMC(problems, 4, rejuvenate=SuffixMH, moves=0), "moves must be an integer of at least 1, got 0"),
        (lambda: SMC(problems, 4, rejuvenate=SuffixMH, move_every=0), "move_every must be an integer of at least 1, got 0"),
        (lambda: SMC(problems, 4, moves=2), "moves=2 has no effect without a kernel: give rejuvenate= as well"),
        (lambda: SMC(problems, 4, move_every=2), "move_every=2 has no effect without a kernel"),
        (lambda: power(problems, 2.0, bridge={1.5}), "bridge must be a"),  # type: ignore[arg-type]
        (lambda: SMC(problems, 4, rejuvenate=3), "rejuvenate must be a function or None, got 3"),
        (lambda: SMC(problems, 4, rejuvenate=partial(PIMH, num_particles=4)), "PIMH cannot move the particles of another algorithm"),
        (lambda: SMC(problems, 4, rejuvenate=partial(PMMH, num_particles=4, parameters=["x_0"])), "PMMH cannot move"),
        (
            lambda: SMC(problems, 4, rejuvenate=partial(ParticleGibbs, num_particles=4, ancestor_sampling=True)),
            r"rejuvenate=ParticleGibbs\(num_particles=4, ancestor_sampling=True\): this kernel is not reversible",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
