"""Enumeration against plain sums."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings
from pyro.infer import EmpiricalMarginal
from torch import Tensor

from ppl_llm.inference import Enumeration, barrier
from tests.helpers.exact import Chain, chains


def rain(observed: float = 1.0) -> tuple[Tensor, Tensor]:
    rains = pyro.sample("rains", dist.Bernoulli(0.3))
    sprinkler = pyro.sample("sprinkler", dist.Bernoulli(torch.where(rains == 1, 0.01, 0.4)))
    wet = torch.where(rains == 1, 0.9, torch.where(sprinkler == 1, 0.8, 0.05))
    pyro.sample("wet", dist.Bernoulli(wet), obs=torch.tensor(observed))
    return barrier((rains, sprinkler))


def test_sprinkler() -> None:
    posterior = Enumeration(rain).run()
    joint = {(r, s): (0.3 if r else 0.7) * (p if s else 1 - p) for r, p in ((1, 0.01), (0, 0.4)) for s in (0, 1)}
    mass = {(r, s): p * (0.9 if r else 0.8 if s else 0.05) for (r, s), p in joint.items()}
    total = sum(mass.values())
    assert float(posterior.log_evidence.exp()) == pytest.approx(total, rel=1e-6)
    marginal = posterior.marginal(lambda value: (int(value[0]), int(value[1])))
    assert dict(marginal.probs) == pytest.approx({k: m / total for k, m in mass.items()}, rel=1e-5)
    assert float(EmpiricalMarginal(posterior, "rains").mean) == pytest.approx((mass[1, 0] + mass[1, 1]) / total, rel=1e-5)
    assert float(posterior.sites["rains"].sum()) == 2.0 and posterior.num_particles == 4


def test_impossible_values_and_handlers() -> None:
    def model() -> Tensor:
        first = pyro.sample("first", dist.Categorical(logits=torch.tensor([0.0, 0.25, 0.75]).log()))
        second = pyro.sample("second", dist.Categorical(logits=torch.eye(3)[first].log()))
        with pyro.plate("data", 2, dim=-2):
            pyro.sample("y", dist.Normal(second.float(), 1.0), obs=torch.tensor([[1.0], [2.0]]))
        return second

    posterior = Enumeration(model).run()
    assert posterior.num_particles == 2  # the others have prior probability zero

    def density(m: float) -> float:
        return math.exp(-0.5 * ((1 - m) ** 2 + (2 - m) ** 2)) / (2 * math.pi)

    exact = 0.25 * density(1) + 0.75 * density(2)
    assert float(posterior.log_evidence.exp()) == pytest.approx(exact, rel=1e-6)
    given_two = Enumeration(poutine.condition(model, {"first": torch.tensor(2)})).run()
    assert float(given_two.log_evidence.exp()) == pytest.approx(0.75 * density(2), rel=1e-6)
    squared = Enumeration(poutine.scale(model, 2.0)).run()
    assert float(squared.log_evidence.exp()) == pytest.approx((0.25 * density(1)) ** 2 + (0.75 * density(2)) ** 2, rel=1e-6)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(chain=chains())
def test_chains_with_particles_that_finish(chain: Chain) -> None:
    def single() -> Tensor:
        x = code = torch.zeros((), dtype=torch.long)
        done = torch.zeros((), dtype=torch.bool)
        for t in range(chain.length):
            probs = chain.init if t == 0 else chain.transition[x]
            x = pyro.sample(f"x_{t}", dist.Categorical(probs))
            code = torch.where(done, code, code * (chain.num_symbols + 1) + x + 1)
            pyro.factor(f"y_{t}", torch.where(done, 0.0, chain.potentials[t][code.clamp(max=len(chain.potentials[t]) - 1)].log()))
            done = done | (x == 0) if chain.ends else done
        return code

    posterior = Enumeration(single).run()
    assert float(posterior.log_evidence.exp()) == pytest.approx(sum(chain.paths().values()), rel=1e-9)


def test_errors_name_the_site() -> None:
    with pytest.raises(ValueError, match=r"site 'z' \(Normal\) has no finite support"):
        Enumeration(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).run()

    def plated() -> None:
        with pyro.plate("problems", 3, dim=-2):
            pyro.sample("x", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="site 'x' has batch shape"):
        Enumeration(plated).run()
    with pytest.raises(ValueError, match="16 paths at site 'x_3' exceed max_paths=8"):
        Enumeration(lambda: [pyro.sample(f"x_{t}", dist.Bernoulli(0.5)) for t in range(5)], max_paths=8).run()
    with pytest.raises(ValueError, match="max_paths must be an integer of at least 1, got 0"):
        Enumeration(rain, max_paths=0)
