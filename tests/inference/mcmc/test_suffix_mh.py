"""SuffixMH: exact transition matrices over trajectories of several lengths, power posteriors, Pyro's driver, errors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC
from torch import Tensor

from ppl_llm import LLMStep
from ppl_llm.inference import SMC, SuffixMH, TemperMessenger, Trajectory, barrier
from ppl_llm.inference.mcmc.suffix_mh import SuffixMessenger
from tests.helpers.exact import PAD, AbsorbingCategorical, Chain, Path, chains, simplex
from tests.helpers.exact_conditional import codes, grid
from tests.helpers.mutants import WRONG_SUFFIX
from tests.helpers.programs_that_stop import Silent, Stopping, three_symbols
from tests.helpers.reasoning import MAX_STEPS, MAX_TOKENS, TEMPERATURE, solve, trajectories
from tests.inference.test_smc_exact import EXACT, spiky

exactly = settings(max_examples=8)


def target(model: Chain, likelihood: float = 1.0, prior: float = 1.0) -> tuple[Tensor, Tensor]:
    """Trajectories ``[R, T]`` and their probabilities under ``p(x)^prior p(y | x)^likelihood``."""
    plain = Chain(model.init, model.transition, [torch.ones_like(g) for g in model.potentials], model.ends)
    p, joint = plain.paths(), model.paths()
    mass = torch.tensor([p[x] ** prior * (joint[x] / p[x]) ** likelihood for x in joint], dtype=torch.float64)
    return torch.tensor(list(joint)), mass / mass.sum()


def transition_matrix(model: Chain, kernel: type[SuffixMH], proposal: Tensor | None, likelihood: float, prior: float) -> tuple[Any, ...]:
    """The real sweep on every (trajectory, cut, proposed values) as columns: pi ``[R]`` and K ``[R, R]``.

    :param Tensor proposal: ``[T, V]`` probabilities to propose from instead of the prior.
    """
    v, length = model.num_symbols, model.length
    references, pi = target(model, likelihood, prior)
    chosen = grid([len(references), length] + [v] * length)
    which, cut, values = chosen[0], chosen[1], chosen[2:]
    columns = chosen.shape[1]
    path = Path(columns)

    def propose(site: Any) -> Any:
        t = int(site["name"].split("_")[1]) if isinstance(site["fn"], AbsorbingCategorical) else -1
        return AbsorbingCategorical(proposal[t].expand(2, columns, v), site["fn"].active) if t >= 0 else None  # type: ignore[index]

    class Enumerated(kernel):  # type: ignore[misc, valid-type]
        def draw_cut(self, steps: Tensor) -> Tensor:
            path.log_prob = path.log_prob + torch.where(cut < steps, -steps.double().log(), -torch.inf)
            return torch.minimum(cut, steps - 1)

        def messenger(self, reference: Any, cut: Tensor) -> SuffixMessenger:
            base = type(super().messenger(reference, cut))

            class Forced(base):  # type: ignore[misc, valid-type]
                def propose(self, msg: Any) -> None:
                    fn, forced = msg["infer"].get("proposal", msg["fn"]), values[int(msg["name"].split("_")[1])]
                    msg["value"] = torch.where(msg["fn"].active, forced, PAD)
                    free = ~self.pinned(forced.device) & msg["fn"].active
                    path.log_prob = path.log_prob + torch.where(free, fn.log_prob(msg["value"]), -math.log(v))[1]
                    super().propose(msg)

            return Forced(self.max_plate_nesting, reference=reference, cut=cut, proposals=self.proposals)

    ended = (references != PAD).sum(1)
    reference = Trajectory({f"x_{t}": references[which, t] for t in range(length)})
    tells = isinstance(model, Stopping)
    reference.length = ended[which] if tells else torch.full_like(which, length)
    made = Enumerated(TemperMessenger(likelihood, prior)(model), proposals=propose if proposal is not None else None, max_plate_nesting=1)
    posterior = made.sweep(reference, columns)
    number = torch.zeros((v + 1) ** length, dtype=torch.long)
    number[codes(list(references.T), v)] = torch.arange(len(references))
    after = number[codes([posterior.sites[f"x_{t}"] for t in range(length)], v)]
    matrix = torch.zeros(len(references), len(references), dtype=torch.float64)
    matrix.index_put_((which.expand(2, -1), after), path.log_prob.exp() * posterior.weights, accumulate=True)
    return pi, matrix


def imbalance(model: Chain, kernel: type[SuffixMH] = SuffixMH, proposal: Tensor | None = None, powers: Any = (1.0, 1.0)) -> float:
    """Largest violation of ``sum_y K(x, y) = 1`` and of ``pi(x) K(x, y) = pi(y) K(y, x)``."""
    pi, matrix = transition_matrix(model, kernel, proposal, *powers)
    flow = pi[:, None] * matrix
    return max(float((matrix.sum(1) - 1).abs().max()), float((flow - flow.T).abs().max()))


@exactly
@given(model=chains(length=3), proposal=st.none() | st.lists(simplex(2), min_size=3, max_size=3).map(torch.stack))
def test_detailed_balance(model: Chain, proposal: Tensor | None) -> None:
    assert imbalance(model, proposal=proposal) < EXACT


POWERS = [(1.0, 1.0), (0.0, 3.0), (0.5, 0.5), (2.0, 1.5), (0.0, 1.0)]


@pytest.mark.parametrize("powers", POWERS)
@pytest.mark.parametrize("kind", [Chain, Stopping])
def test_detailed_balance_across_lengths(kind: type[Chain], powers: tuple[float, float]) -> None:
    """Trajectories of one to three steps; powers of likelihood and prior; from the prior and from proposals."""
    proposal = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2]], dtype=torch.float64)
    for seed in range(2):
        model = three_symbols(3, True, seed, kind)
        assert imbalance(model, powers=powers) < EXACT
        assert imbalance(model, proposal=proposal, powers=powers) < EXACT


def test_the_matrix_moves() -> None:
    pi, matrix = transition_matrix(three_symbols(3, True, kind=Stopping), SuffixMH, None, 1.0, 1.0)
    reached = torch.linalg.matrix_power(matrix, 200)
    torch.testing.assert_close(reached, pi.expand_as(reached), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("name", WRONG_SUFFIX)
def test_rejects_wrong_acceptance(name: str) -> None:
    """A wrong kernel moves a probability of at least 0.02 away from some trajectory of the power posterior ``p(x)^3``."""
    model = three_symbols(3, True, 2, Stopping)
    assert imbalance(model, powers=(0.0, 3.0)) < EXACT
    pi, matrix = transition_matrix(model, WRONG_SUFFIX[name], None, 0.0, 3.0)
    assert float((pi @ matrix - pi).abs().max()) > 2e-2


# Power posteriors on a language model
def power_kernel(alpha: float) -> SuffixMH:
    def colder(site: Any) -> Any:
        if not site["name"].startswith("step"):
            return None
        return LLMStep(site["fn"].context, stop=";", max_tokens=MAX_TOKENS, temperature=TEMPERATURE / alpha)

    def replicated(replicates: int) -> Any:
        with pyro.plate("replicates", replicates, dim=-1):
            return solve(["a"] * replicates)

    return SuffixMH(TemperMessenger(likelihood=0.0, prior=alpha)(replicated), proposals=colder, max_plate_nesting=1)


def step_values(tokens: tuple[int, ...]) -> Tensor:
    steps, place, t = torch.full((MAX_STEPS, MAX_TOKENS), PAD), 0, 0
    for token in tokens:
        steps[t, place] = token
        place += 1
        if token in (2, 3) or place == MAX_TOKENS:
            t, place = t + 1, 0
    return steps


def power_posterior_chi2(kernel: SuffixMH, alpha: float, replicates: int, sweeps: int) -> tuple[float, int]:
    """Chi-square of trajectories after some sweeps from exact draws of ``p(x)^alpha``."""
    found = trajectories()
    mass = torch.tensor([p**alpha for _, _, p, _, _ in found], dtype=torch.float64)
    pi = mass / mass.sum()
    drawn = torch.multinomial(pi, replicates, replacement=True)
    steps = torch.stack([step_values(tokens) for tokens, *_ in found])[drawn]
    state = Trajectory({f"step_{t}": steps[:, t] for t in range(MAX_STEPS)})
    for _ in range(sweeps):
        _, state = kernel.step(state, replicates)
    number = {tokens: i for i, (tokens, *_) in enumerate(found)}
    after = torch.stack([state[f"step_{t}"] for t in range(MAX_STEPS)], 1).flatten(1).tolist()
    counts = torch.bincount(torch.tensor([number[tuple(v for v in row if v != PAD)] for row in after]), minlength=len(found))
    expected = pi * replicates
    large = expected >= 10
    chi2 = ((counts - expected) ** 2 / expected)[large].sum() + ((counts - expected)[~large].sum() ** 2 / expected[~large].sum())
    return float(chi2), int(large.sum())


def bound(df: int, log_alpha: float = 14.0) -> float:
    """Laurent & Massart (2000): a chi-square exceeds it with probability below exp(-14) < 1e-6."""
    return df + 2 * math.sqrt(df * log_alpha) + 2 * log_alpha


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_power_posterior_of_a_language_model(alpha: float) -> None:
    """8000 exact draws keep their distribution under two sweeps; without the ratio of lengths they lose it (false alarm 1e-6)."""
    pyro.set_rng_seed(0)
    chi2, df = power_posterior_chi2(power_kernel(alpha), alpha, 8000, 2)
    assert df > 5 and chi2 < bound(df)
    wrong = power_kernel(alpha)
    wrong.accept = WRONG_SUFFIX["no length ratio"].accept.__get__(wrong)  # type: ignore[method-assign, attr-defined]
    chi2, df = power_posterior_chi2(wrong, alpha, 8000, 2)
    assert chi2 > 2 * bound(df)


# As a user meets it
def test_without_barriers_it_is_the_independence_sampler() -> None:
    """4000 chains of 20 iterations from the prior; the last is all but independent of the first (false alarm 1e-6)."""
    pyro.set_rng_seed(2)

    def model() -> Tensor:
        with pyro.plate("chains", 4000, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        return z

    chain = SuffixMH(model, max_plate_nesting=1).run(20)
    assert chain.num_particles == 40
    last = chain.iterations[-1].draw()["z"]
    assert abs(float(last.mean()) - 0.5) < 4.9 * math.sqrt(0.5 / 4000)
    assert abs(float(last.var()) - 0.5) < 4.9 * 0.5 * math.sqrt(2 / 4000)
    with pytest.raises(ValueError, match="gives no evidence"):
        _ = chain.log_evidence


def test_pyro_drives_it_from_given_values() -> None:
    pyro.set_rng_seed(3)
    data = spiky()
    kernel = SuffixMH(lambda: data(1), max_plate_nesting=1)
    start = {f"x_{t}": torch.tensor([1]) for t in range(3)}
    chain = MCMC(kernel, num_samples=200, warmup_steps=20, initial_params=start, disable_progbar=True)
    chain.run()
    paths = data.paths()
    p = sum(mass for path, mass in paths.items() if path[0] == 1) / sum(paths.values())
    assert abs(float((chain.get_samples()["x_0"] == 1).double().mean()) - p) < 0.2


def test_a_model_that_stops_early_must_tell() -> None:
    """Otherwise the number of steps depends on the other particle, and with it the ratio of lengths."""
    pyro.set_rng_seed(4)
    silent = three_symbols(3, True, kind=Silent)
    with pytest.raises(ValueError, match=r"a trajectory of \d steps took \d when it was run again: the model stops early, but barrier"):
        SuffixMH(lambda: silent(1), max_plate_nesting=1).run(200)
    telling = three_symbols(3, True, kind=Stopping)
    assert len(SuffixMH(lambda: telling(1), max_plate_nesting=1).run(200).iterations) == 200


def test_interruption_keeps_what_there_is() -> None:
    calls = []

    def stops() -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return spiky()(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        SuffixMH(stops, max_plate_nesting=1).run(100)
    assert len(caught.value.partial_posterior.iterations) == 6  # type: ignore[attr-defined]


def test_a_model_without_latent_sites_stays_where_it_is() -> None:
    """Found by the fuzz (program 3469 of seed 0): the ratio of two lengths of zero was no number."""

    def model() -> Tensor:
        z = barrier(pyro.sample("z", dist.Categorical(torch.ones(3))))
        pyro.factor("f", z.double())
        return z

    given = pyro.poutine.condition(model, data={"z": torch.tensor(1)})
    chain = SuffixMH(given).run(5)
    assert all(bool(torch.isfinite(each.weights).all()) for each in chain.iterations)
    posterior = SMC(given, 4, rejuvenate=SuffixMH, moves=2).run()
    assert float(posterior.log_evidence) == pytest.approx(1.0 - math.log(3.0), abs=1e-6)
