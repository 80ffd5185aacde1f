"""Where SMC in slices stops: at the caller's will, at a budget, at an error; each time with a usable state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from ppl_llm import reasoning
from ppl_llm.inference import SMC, Importance, ParticleGibbs, SMCFailed, barrier
from tests.helpers.reasoning import LM, PRM
from tests.inference.test_slices import REASONING, assert_same
from tests.inference.test_smc import OBSERVATIONS, walk


def test_the_caller_may_stop() -> None:
    pyro.set_rng_seed(1)
    for state in SMC(walk, 50).iterate(OBSERVATIONS):
        if state.num_barriers == 2:
            break
    assert not state.complete and set(state.sites) == {"z_0", "z_1"}
    torch.testing.assert_close(state.value, state.sites["z_1"])
    assert float(state.log_evidence) < 0 and not _PYRO_STACK


def test_what_the_caller_does_between_slices_is_its_own() -> None:
    """Handlers, other runs, even of the same object, and draws of its own; the latter are fresh, and so is what follows."""
    smc = SMC(walk, 20, ess_threshold=1.0)
    pyro.set_rng_seed(2)
    whole = smc.run(OBSERVATIONS)
    pyro.set_rng_seed(2)
    states = []
    for state in smc.iterate(OBSERVATIONS):
        states.append(state)
        with torch.random.fork_rng():
            smc.run(OBSERVATIONS[:2])
            with pyro.plate("mine", 3):
                pyro.sample("mine", dist.Normal(0.0, 1.0))
    assert_same(states[-1], whole)
    pyro.set_rng_seed(2)
    drawn = [torch.rand(20) for _ in smc.iterate(OBSERVATIONS)]
    assert len(torch.stack(drawn).unique()) == 100


def test_budget_of_tokens() -> None:
    pyro.set_rng_seed(3)
    states = list(SMC(REASONING, 20).iterate("a"))
    budget = int(states[1].cost["tokens_sampled"])
    pyro.set_rng_seed(3)
    stopped = SMC(REASONING, 20, max_tokens_total=budget).run("a")
    assert_same(stopped, states[1])
    assert not stopped.complete and stopped.cost["tokens_sampled"] == budget
    pyro.set_rng_seed(3)
    *_, last = SMC(REASONING, 20, max_tokens_total=budget).iterate("a")
    assert_same(last, stopped)
    pyro.set_rng_seed(3)
    assert SMC(REASONING, 20, max_tokens_total=budget + 1).run("a").num_barriers == 3
    with pytest.raises(ValueError, match="max_tokens_total must be None or an integer of at least 1, got 0"):
        SMC(REASONING, 20, max_tokens_total=0)


def test_a_budget_does_not_stop_particles_that_are_done() -> None:
    """Nothing is left to sample: the model may as well return."""
    model = reasoning(LM, PRM, "exact", stop=";", max_tokens=1, max_steps=400)
    pyro.set_rng_seed(4)
    whole = SMC(model, 3).run("a")
    assert bool(whole.value.done.all())
    tokens = int(whole.cost["tokens_sampled"])
    for run in (lambda smc: smc.run("a"), lambda smc: list(smc.iterate("a"))[-1]):
        pyro.set_rng_seed(4)
        assert run(SMC(model, 3, max_tokens_total=tokens)).complete


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruptions_keep_the_last_state(error: type[BaseException], tmp_path: Any) -> None:
    """An interruption between two barriers, or while the beginning is gone through again; what is left can be saved and resumed."""
    stop: list[int] = []

    def model(steps: int) -> Tensor:
        z = torch.zeros(())
        for t in range(steps):
            if stop and stop[0] == t:
                raise error
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.factor(f"f_{t}", -(z**2))
            z = barrier(z)
        return z

    smc = SMC(model, 10, ess_threshold=1.0)
    pyro.set_rng_seed(5)
    whole = smc.run(6)
    for again in (False, True):
        pyro.set_rng_seed(5)
        stop.clear()
        with pytest.raises(error) as caught:
            for state in smc.iterate(6):
                stop[:] = [1 if again else 3] if state.num_barriers == 3 else []
        partial = caught.value.partial_posterior
        assert_same(partial, state)
        assert partial.num_barriers == 3 and not partial.complete
        stop.clear()
        partial.save(tmp_path / "state")
        assert_same(smc.resume(tmp_path / "state"), whole)
    stop[:] = [4]
    pyro.set_rng_seed(5)
    with pytest.raises(error) as caught:
        smc.run(6)
    stop.clear()
    caught.value.partial_posterior.save(tmp_path / "state")
    assert_same(smc.resume(tmp_path / "state"), whole)


def test_dead_populations_carry_the_state_before_and_the_particles_that_died() -> None:
    drawn: list[Tensor] = []

    def model() -> None:
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
            drawn.append(x)
            pyro.factor(f"wall_{t}", torch.full_like(x, -math.inf if t == 2 else 0.0))
            x = barrier(x)

    with pytest.raises(SMCFailed, match="'wall_2'") as caught:
        for state in SMC(model, 5).iterate():
            assert state.num_barriers < 3
    assert caught.value.partial_posterior.num_barriers == 2
    assert caught.value.value is drawn[-1] and len(drawn[-1]) == 5


def test_what_dies_after_the_last_barrier_has_no_known_value() -> None:
    def model() -> None:
        x = barrier(pyro.sample("x", dist.Normal(0.0, 1.0)))
        pyro.factor("wall", torch.full_like(x, -math.inf))

    with pytest.raises(SMCFailed, match="'wall'") as caught:
        SMC(model, 5).run()
    assert caught.value.value is None


def test_a_model_that_catches_exceptions_is_left_all_the_same() -> None:
    def model() -> Tensor:
        z = torch.zeros(())
        for t in range(3):
            try:
                z = barrier(pyro.sample(f"z_{t}", dist.Normal(z, 1.0)))
            except Exception:
                raise AssertionError("the pause must pass") from None
        return z

    assert [state.num_barriers for state in SMC(model, 4).iterate()] == [1, 2, 3, 3]


def test_models_that_change_between_slices() -> None:
    calls = []

    def renaming() -> None:
        calls.append(1)
        for t in range(3):
            barrier(pyro.sample(f"z_{len(calls)}_{t}", dist.Normal(0.0, 1.0)))

    with pytest.raises(
        ValueError, match=r"it now has a site 'z_2_0', which was not there\. A model that is run in slices must be the same"
    ):
        list(SMC(renaming, 4).iterate())

    def shrinking() -> None:
        calls.append(1)
        for t in range(8 - len(calls)):
            barrier(pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0)))

    calls.clear()
    with pytest.raises(ValueError, match="it now ends after 3 barriers"):
        list(SMC(shrinking, 4).iterate())
    assert not _PYRO_STACK


def test_importance_in_slices() -> None:
    pyro.set_rng_seed(6)
    whole = Importance(walk, 30).run(OBSERVATIONS)
    pyro.set_rng_seed(6)
    *_, last = Importance(walk, 30).iterate(OBSERVATIONS)
    assert_same(last, whole)
    assert [state.num_barriers for state in SMC(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), 3).iterate()] == [0]


class Bare:
    """A state that can be permuted and indexed, and no more."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def reorder(self, index: Tensor) -> Bare:
        return Bare(self.z.gather(0, index))

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, i: int) -> Bare:
        return Bare(self.z[i])


@pytest.mark.parametrize(
    ("run", "fails_at"),
    [(lambda model: SMC(model, 4, islands=2).run(), 1), (lambda model: ParticleGibbs(model, 4).run(5), 4)],
    ids=["islands are taken apart", "iterations are joined"],
)
def test_an_error_comes_through_where_no_posterior_can_be_built(run: Callable[[Any], Any], fails_at: int) -> None:
    """Neither can be done with a state that has neither ``select_plate`` nor ``concatenate``."""
    calls = 0

    def model() -> Bare:
        nonlocal calls
        state = barrier(Bare(pyro.sample("z", dist.Normal(0.0, 1.0))))
        calls += 1
        if calls == fails_at:
            raise OSError("no more disk")
        return state

    with pytest.raises(OSError, match="no more disk") as caught:
        run(model)
    assert caught.value.partial_posterior is None
    assert caught.value.__notes__[0].startswith("partial_posterior is None, because building it gave")
