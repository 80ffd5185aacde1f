"""The plate of the particles does what ``pyro.plate`` does."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_llm.inference.handlers.particle_plate import _SPREAD_OUT, particle_plate
from ppl_llm.inference.particles.plates import PLATE
from tests.helpers.exact import AbsorbingCategorical

N = 5
MEANS, ROWS = torch.linspace(0.2, 0.8, N), torch.rand(N, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
MADE = [
    dist.Bernoulli(MEANS),
    dist.Beta(MEANS, torch.tensor(2.0)),
    dist.Categorical(ROWS),
    dist.Dirichlet(ROWS),
    dist.Exponential(MEANS),
    dist.Gamma(torch.tensor(2.0), MEANS),
    dist.Laplace(MEANS, 1.0),
    dist.Normal(torch.tensor(0.0), MEANS),
    dist.Poisson(MEANS),
    dist.StudentT(3.0, MEANS),
    dist.Uniform(torch.tensor(0.0), MEANS),
    dist.Unit(MEANS.log()),
]


def met(plate: Any, fn: Any) -> dict[str, Any]:
    """Sites in a plate, one of them scaled."""

    def model() -> None:
        with plate:
            pyro.sample("latent", fn)
            with poutine.scale(scale=0.3):
                pyro.sample("scaled", fn)
            pyro.factor("factor", torch.zeros(N))
            pyro.sample("lone", dist.Normal(0.0, 1.0))

    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name != PLATE}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, site in found.items():
        other = expected[name]
        assert torch.equal(site["value"], other["value"]) and torch.equal(site["log_prob"], other["log_prob"])
        assert site["cond_indep_stack"] == other["cond_indep_stack"] and site["scale"] == other["scale"]
        assert getattr(site["fn"], "batch_shape", None) == getattr(other["fn"], "batch_shape", None)


@pytest.mark.parametrize("fn", MADE, ids=lambda fn: type(fn).__name__)
def test_a_site_is_what_it_is_in_an_ordinary_plate(fn: Any) -> None:
    assert_same(met(particle_plate(N, 0), fn), met(pyro.plate(PLATE, N, dim=-1), fn))


def test_every_distribution_that_is_left_alone_is_tested() -> None:
    assert {type(fn) for fn in MADE} == _SPREAD_OUT


def test_a_distribution_that_waits_for_expand_is_expanded() -> None:
    """Without it all particles would share one draw."""
    fn = AbsorbingCategorical(torch.full((50,), 0.02), torch.ones(N, dtype=torch.bool))
    assert fn.batch_shape == (N,) and fn.sample().unique().numel() == 1
    found = met(particle_plate(N, 0), fn)
    assert found["latent"]["value"].unique().numel() > 1
    assert_same(found, met(pyro.plate(PLATE, N, dim=-1), fn))


def test_plates_of_the_model_broadcast_as_ever() -> None:
    def drawn(plate: Any) -> Tensor:
        pyro.set_rng_seed(0)
        with plate, pyro.plate("problems", 3, dim=-1):
            first: Tensor = pyro.sample("x", dist.Normal(torch.zeros(N, 1), 1.0))
            return first + pyro.sample("y", dist.Normal(first, 1.0))

    assert torch.equal(drawn(particle_plate(N, 1)), drawn(pyro.plate(PLATE, N, dim=-2)))
    assert drawn(particle_plate(N, 1)).shape == (N, 3)


def test_a_distribution_of_another_size_is_an_error() -> None:
    message = rf"distribution of site 'x' has batch shape \({N + 1},\), and there are {N} particles: .* \(Shape mismatch inside plate"
    with pytest.raises(ValueError, match=message), particle_plate(N, 0):
        pyro.sample("x", dist.Normal(torch.zeros(N + 1), 1.0))
    with pytest.raises(ValueError, match=r"^Shape mismatch inside plate"), particle_plate(N, 1), pyro.plate("problems", 3, dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(4), 1.0))
