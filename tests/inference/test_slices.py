"""SMC in slices: bit for bit what one run gives, and nothing done twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

from ppl_llm import Context, reasoning
from ppl_llm.inference import SMC, IslandPosterior, ParticleMessenger, ParticlePosterior, TemperMessenger, barrier, count
from ppl_llm.inference.handlers.resume_messenger import ResumeMessenger
from tests.helpers.exact import AbsorbingCategorical
from tests.helpers.mutants import forget_particle_state
from tests.helpers.reasoning import LM, PRM, solve
from tests.inference.test_smc import OBSERVATIONS, walk
from tests.inference.test_smc_exact import spiky


def assert_same(first: ParticlePosterior, second: ParticlePosterior) -> None:
    """Bit for bit."""
    if isinstance(first, IslandPosterior):
        assert isinstance(second, IslandPosterior) and torch.equal(first.log_weights, second.log_weights)
        for one, other in zip(first.islands, second.islands, strict=True):
            assert_same(one, other)
        return
    for name in ("log_weights", "ess", "ancestors", "resampled", "lengths", "log_likelihood", "log_evidence"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for sites in ("sites", "site_log_probs"):
        one, other = getattr(first, sites), getattr(second, sites)
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one), sites
    one, other = (posterior.value for posterior in (first, second))
    if isinstance(one, Context):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "lengths", "ends", "reasons", "done"))
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)


def two_sites(steps: int) -> tuple[Tensor, list[Tensor]]:
    """Two latent sites and a deterministic one in each step, a history in a list, a site after the last barrier."""
    z, history = torch.zeros(()), []
    for t in range(steps):
        drift = pyro.sample(f"drift_{t}", dist.Normal(0.0, 0.5))
        z = pyro.sample(f"z_{t}", dist.Normal(z + drift, 1.0))
        pyro.deterministic(f"square_{t}", z**2)
        pyro.factor(f"f_{t}", -((z - 1) ** 2))
        history.append(z)
        z, *history = barrier([z, *history])
    pyro.sample("last", dist.Normal(z, 1.0))
    return z, history


def subsampled(data: Tensor) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for t in range(3):
        with pyro.plate(f"data_{t}", len(data), subsample_size=4, dim=-1) as index:
            pyro.sample(f"y_{t}", dist.Normal(mu[..., None] if mu.dim() < 2 else mu, 1.0), obs=data[index])
        mu = barrier(mu)
    return mu


def stragglers_die() -> Tensor:
    """Ends when every particle is done, which comes early for the lineages that survive: the others are killed by the fourth factor."""
    done = torch.zeros((), dtype=torch.bool)
    for t in range(6):
        x = pyro.sample(f"x_{t}", AbsorbingCategorical(torch.tensor([0.6, 0.4]), ~done))
        done = done | (x == 0)
        pyro.factor(f"f_{t}", torch.where(done | torch.tensor(t < 3), 0.0, -math.inf))
        done = barrier(done)
        if done.all():
            break
    return done


REASONING = reasoning(LM, PRM, "exact", stop=";", max_tokens=2, max_steps=6)
PROPOSALS = {f"z_{t}": dist.Normal(y, 0.6) for t, y in enumerate(OBSERVATIONS)}
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "continuous": (walk, (OBSERVATIONS,), {"audit": True}),
    "proposals": (walk, (OBSERVATIONS,), {"proposals": PROPOSALS}),
    "two sites": (two_sites, (4,), {"audit": True}),
    "tempered": (TemperMessenger(likelihood=0.5)(two_sites), (4,), {}),
    "plate": (spiky(), (3,), {"max_plate_nesting": 1}),
    "model that forgets its state": (forget_particle_state(spiky(ends=False)), (3,), {"max_plate_nesting": 1}),
    "subsampling": (subsampled, (torch.arange(9.0),), {"max_plate_nesting": 1}),
    "reasoning": (REASONING, ("a",), {}),
    "early exit of the survivors": (stragglers_die, (), {"ess_threshold": 1.0}),
    "repeating preset": (reasoning(LM, PRM, "its_hub", stop=";", max_tokens=2, max_steps=4), ("ab",), {"ess_threshold": 1.0}),
    "islands of problems": (REASONING, (["a", "ba"],), {"max_plate_nesting": 1, "islands": 2, "audit": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_slices_give_what_a_run_gives(case: str) -> None:
    model, args, options = CASES[case]
    smc = SMC(model, 16, **{"ess_threshold": 0.8, **options})
    for seed in range(2):
        pyro.set_rng_seed(seed)
        whole = smc.run(*args)
        after = torch.get_rng_state()
        pyro.set_rng_seed(seed)
        states = []
        for state in smc.iterate(*args):
            assert not _PYRO_STACK and not _DIM_ALLOCATOR._stack
            states.append(state)
        assert_same(states[-1], whole)
        assert torch.equal(torch.get_rng_state(), after)
        assert states[-1].cost.get("tokens_sampled") == whole.cost.get("tokens_sampled")
        assert [state.complete for state in states] == [False] * whole.num_barriers + [True] and whole.complete
        assert [state.num_barriers for state in states] == [*range(1, whole.num_barriers + 1), whole.num_barriers]
        if states[-1].audit is not None:
            assert whole.audit is not None and states[-1].audit.error == whole.audit.error


class SurvivingLineages(ResumeMessenger):
    """Goes through the beginning with the values of the surviving lineages, as if dead particles had never been."""

    def __init__(self, messenger: ParticleMessenger, start: Any, rng: Any) -> None:
        super().__init__(messenger, start, rng)
        self.values = ParticlePosterior.from_snapshot(start.snapshot).sites
        self.records = tuple(record._replace(resampled=torch.zeros_like(record.resampled)) for record in self.records)


class ForgottenDone(ResumeMessenger):
    """Does not know any more which particles were done."""

    def _proceed(self, value: Any) -> None:
        super()._proceed(value)
        self.messenger.system.done = None


class ForgottenLikelihood(ResumeMessenger):
    """Continues without the log-likelihood so far."""

    def _proceed(self, value: Any) -> None:
        super()._proceed(value)
        self.messenger.system.log_likelihood = torch.zeros_like(self.messenger.system.log_likelihood)


WRONG = {
    "model that forgets its state": SurvivingLineages,
    "early exit of the survivors": SurvivingLineages,
    "reasoning": ForgottenDone,
    "continuous": ForgottenLikelihood,
}


@pytest.mark.parametrize("case", WRONG)
def test_rejects_wrong_ways_to_continue(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.inference.smc.ResumeMessenger", WRONG[case])
    with pytest.raises((AssertionError, ValueError)):
        test_slices_give_what_a_run_gives(case)


def test_a_state_is_what_the_callback_gets() -> None:
    seen: list[ParticlePosterior] = []
    pyro.set_rng_seed(0)
    SMC(solve, 10, callback=seen.append).run("a")
    pyro.set_rng_seed(0)
    for state, expected in zip(SMC(solve, 10).iterate("a"), seen, strict=False):
        assert_same(state, expected)


class Counting(dist.Normal):
    """Counts its work."""

    work: dict[str, int] = {}  # noqa: RUF012 - shared by its copies

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counting:
        new = super().expand(batch_shape, _instance)
        new.__class__ = Counting
        return new

    def sample(self, *args: Any) -> Tensor:
        self.work["draws"] = self.work.get("draws", 0) + 1
        return super().sample(*args)

    __call__ = sample

    def log_prob(self, value: Tensor) -> Tensor:
        self.work["scores"] = self.work.get("scores", 0) + 1
        return super().log_prob(value)


def test_no_distribution_is_asked_twice() -> None:
    def model(steps: int) -> Tensor:
        z = torch.zeros(())
        for t in range(steps):
            count(steps=1)
            z = pyro.sample(f"z_{t}", Counting(z, 1.0))
            pyro.sample(f"y_{t}", Counting(z, 1.0), obs=torch.tensor(0.3))
            z = barrier(z)
        return z

    Counting.work.clear()
    *_, last = SMC(model, 8, ess_threshold=1.0).iterate(10)
    assert Counting.work == {"draws": 10, "scores": 10}
    assert last.cost["steps"] == 10  # replayed steps are not counted
