"""Pyro's own algorithms and handlers on the reasoning program, against enumeration. See tests/inference/test_pyro_interop.py."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, EmpiricalMarginal

from ppl_llm import PAD, SMC, Context, Enumeration, reasoning
from ppl_llm.inference import ParticleGibbs, SuffixMH, TemperMessenger
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, distribution, key, solve, trajectories

Z = 4.9  # false alarm 1e-6


def likelihood(z: tuple[float, ...]) -> float:
    return math.prod(1 / (1 + math.exp(-value)) for value in z)


def first_token_distribution() -> torch.Tensor:
    table = torch.zeros(4, dtype=torch.float64)
    for x, mass in distribution(lambda steps, z: likelihood(z)).items():
        table[x[0]] += mass
    return table


def near(found: torch.Tensor, exact: torch.Tensor, draws: float) -> bool:
    return bool(((found - exact).abs() < Z * (exact * (1 - exact) / draws).sqrt() + 1e-9).all())


@pytest.mark.parametrize("kernel", [lambda model: ParticleGibbs(model, 12), SuffixMH], ids=["gibbs", "suffix"])
def test_stock_mcmc(kernel: Any) -> None:
    """300 draws, a tenth of them taken as independent; every sample has the same padded sites."""
    pyro.set_rng_seed(0)
    model = reasoning(LM, PRM, stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS, temperature=TEMPERATURE, early_exit=False)
    chain = MCMC(kernel(model), 300, warmup_steps=30, disable_progbar=True)
    chain.run("a")
    samples = chain.get_samples()
    assert {name: value.shape for name, value in samples.items()} == {f"step_{t}": (300, MAX_TOKENS) for t in range(MAX_STEPS)}
    found = torch.bincount(samples["step_0"][:, 0], minlength=4).double() / 300
    assert near(found, first_token_distribution(), 30)


def test_empirical_marginal_of_steps() -> None:
    """Of a site with tokens as its event, and of the returned contexts by marginal(fn)."""
    pyro.set_rng_seed(1)
    posterior = SMC(solve, 3000).run("a")
    drawn = EmpiricalMarginal(posterior, "step_0").sample((4000,))
    assert drawn.shape == (4000, MAX_TOKENS)
    exact = first_token_distribution()
    assert near(torch.bincount(drawn[:, 0], minlength=4).double() / 4000, exact, 300)
    by_first = posterior.marginal(lambda particle: key(particle)[0])
    assert near(torch.tensor([by_first[v] for v in range(4)]), exact, 300)


def test_trace_and_replay_keep_steps_and_scores() -> None:
    pyro.set_rng_seed(2)
    trace = poutine.trace(solve).get_trace("a")
    again = poutine.trace(poutine.replay(solve, trace)).get_trace("a")
    assert torch.equal(trace.log_prob_sum(), again.log_prob_sum())
    assert again.nodes["_RETURN"]["value"].text == trace.nodes["_RETURN"]["value"].text
    drawn = SMC(solve, 50).run("a")()  # a trace of the posterior
    replayed = poutine.trace(poutine.replay(solve, drawn)).get_trace("a")
    assert replayed.nodes["_RETURN"]["value"].text == drawn.nodes["_RETURN"]["value"].text
    context = replayed.nodes["_RETURN"]["value"]
    _, _, p, z, _ = next(found for found in trajectories() if found[0] == key(context))
    assert float(replayed.log_prob_sum()) == pytest.approx(math.log(p * likelihood(z)), abs=1e-4)


def total(weight: Any) -> float:
    return sum(weight(tokens, p, z) for tokens, _, p, z, _ in trajectories())


def given_first(tokens: tuple[int, ...]) -> bool:
    return tokens[:2] == (1, 2)


HANDLED: dict[str, tuple[Any, float]] = {
    "condition": (
        lambda: poutine.condition(solve, {"step_0": torch.tensor([1, 2])}),
        total(lambda x, p, z: p * likelihood(z) * given_first(x)),
    ),
    "scale": (lambda: poutine.scale(solve, 0.5), total(lambda x, p, z: math.sqrt(p * likelihood(z)))),
    "mask": (lambda: poutine.mask(solve, mask=False), 1.0),
    "block the first score": (lambda: poutine.block(solve, hide=["accept_0"]), total(lambda x, p, z: p * likelihood(z[1:]))),
    "block a step": (lambda: poutine.block(solve, hide=["step_1"]), total(lambda x, p, z: p * likelihood(z))),
    "temper": (lambda: TemperMessenger(0.5)(solve), total(lambda x, p, z: p * math.sqrt(likelihood(z)))),
}


@pytest.mark.parametrize("name", HANDLED)
def test_handlers_change_the_target(name: str) -> None:
    """1000 filters of 8 particles: mean evidence against plain sums over all trajectories; by enumeration to rounding."""
    pyro.set_rng_seed(3)
    make, exact = HANDLED[name]
    z_hat = SMC(replicate(make(), 1000, 0), 8, max_plate_nesting=1).run("a").log_evidence.exp()
    if name == "mask":
        assert torch.equal(z_hat, torch.ones_like(z_hat))
        return
    error = float(z_hat.std()) / math.sqrt(1000)
    assert abs(float(z_hat.mean()) - exact) < Z * error
    assert error < 0.03 * exact
    if not name.startswith("block"):
        assert float(Enumeration(make()).run("a").log_evidence.exp()) == pytest.approx(exact, rel=1e-5)


def test_replaying_the_posterior_as_a_batch() -> None:
    """All particles of a posterior at once: condition on its sites in a plate gives the contexts that it returned."""
    pyro.set_rng_seed(4)
    posterior = SMC(solve, 64).run("a")
    with pyro.plate("particles", 64, dim=-1):
        context: Context = poutine.condition(solve, posterior.sites)("a")
    assert torch.equal(context.tokens, posterior.value.tokens)
    assert (context.tokens != PAD).sum(-1).tolist() == context.lengths.tolist()
