"""Models with the mistakes that people make, and whether the audit catches them: the table of docs/model.md."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_llm import LLMStep, StepReward
from ppl_llm.inference import barrier
from tests.helpers.reasoning import LM, PRM

STEPS = 3
START = torch.tensor([0.6, 0.3, 0.1])
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])
EMISSION = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])


@dataclass(frozen=True)
class Buggy:
    """A model and what becomes of it under audit.

    :ivar make: makes a fresh program.
    :ivar str mistake: in a few words, for the documentation.
    :ivar bool resampled: whether the audit of a run that resampled catches it.
    :ivar bool never_resampled: whether that of a run that never resampled does.
    :ivar str how: what catches it, or why nothing can.
    """

    make: Callable[[], Callable[[], Any]]
    mistake: str
    resampled: bool
    never_resampled: bool
    how: str


BUGGY: dict[str, Buggy] = {}


def buggy(mistake: str, how: str, resampled: bool = True, never_resampled: bool = True) -> Any:
    def enter(make: Callable[[], Callable[[], Any]]) -> Callable[[], Callable[[], Any]]:
        BUGGY[make.__name__] = Buggy(make, mistake, resampled, never_resampled, how)
        return make

    return enter


def latent(t: int, z: Tensor) -> Tensor:
    value: Tensor = pyro.sample(f"z_{t}", dist.Categorical(START if t == 0 else TRANSITION[z]))
    return value


def observe(t: int, z: Tensor) -> None:
    pyro.sample(f"y_{t}", dist.Categorical(EMISSION[z]), obs=torch.tensor(t % 2))


def nothing() -> Tensor:
    return torch.zeros((), dtype=torch.long)


# Caught ----------------------------------------------------------------------------------------------------------------------------------


@buggy("a history that is returned but did not pass the barrier", "the model's return value")
def history_beside_the_barrier() -> Callable[[], Any]:
    def program() -> Tensor:
        z, history = nothing(), []
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            history.append(z)
            z = barrier(z)
        return torch.stack(history, -1)

    return program


@buggy("the result of the last barrier dropped", "the model's return value")
def last_barrier_dropped() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            passed = barrier(z)
            if t + 1 < STEPS:
                z = passed
        return z

    return program


@buggy("the result of every barrier ignored", "log-probabilities of the next step")
def barriers_ignored() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            barrier(z)
        return z

    return program


@buggy("an accumulator that grows in place beside the barrier", "the model's return value")
def accumulator_in_place() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        total: Tensor | None = None
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            if total is None:
                total = torch.zeros(z.shape)
            total += z
            z = barrier(z)
        assert total is not None
        return total

    return program


@buggy("a buffer that is written in place beside the barrier", "the model's return value")
def buffer_in_place() -> Callable[[], Any]:
    def program() -> dict[str, Any]:
        z = latent(0, nothing())
        buffer = torch.zeros(*z.shape, STEPS, dtype=torch.long)
        for t in range(STEPS):
            z = latent(t, z) if t > 0 else z
            observe(t, z)
            buffer[..., t] = z
            z = barrier(z)
        return {"last": z, "path": buffer}

    return program


@buggy("a Python list with a string for each particle sent through the barrier", "the barrier refuses it: is it one for each particle?")
def list_through_the_barrier() -> Callable[[], Any]:
    def program() -> Any:
        z = nothing()
        texts: list[str] = []
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            texts = [before + str(int(each)) for before, each in zip(texts or [""] * len(z), z, strict=True)]
            z, texts = barrier((z, texts))
        return z, texts

    return program


@buggy("a dictionary keyed by particle sent through the barrier", "the barrier refuses it: is it one for each particle?")
def dictionary_through_the_barrier() -> Callable[[], Any]:
    def program() -> Any:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            scores = {n: float(each) for n, each in enumerate(z)}
            z, scores = barrier((z, scores))
        return z

    return program


@buggy("a Python list with a string for each particle beside the barrier", "the model's return value")
def list_beside_the_barrier() -> Callable[[], Any]:
    def program() -> Any:
        z = nothing()
        texts: list[str] = []
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            texts = [before + str(int(each)) for before, each in zip(texts or [""] * len(z), z, strict=True)]
            z = barrier(z)
        return texts

    return program


def paths_beside_the_barrier(held: Callable[[list[str]], Any]) -> Callable[[], Any]:
    """A model that returns what ``held`` makes of the path of each particle, none of which passed the barrier."""

    def program() -> Any:
        z = nothing()
        texts: list[str] = []
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            texts = [before + str(int(each)) for before, each in zip(texts or [""] * len(z), z, strict=True)]
            z = barrier(z)
        return held(texts)

    return program


@buggy("the same in a numpy array that is returned", "the model's return value")
def array_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(lambda texts: {"paths": np.array([int(text) for text in texts])})


@buggy("the same in a numpy array of strings", "the model's return value")
def array_of_strings_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(lambda texts: np.array(texts))


@buggy("the same in a set", "the model's return value")
def set_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(set)


@dataclass
class Result:
    texts: list[str]


@buggy("the same in a dataclass", "the model's return value")
def dataclass_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(Result)


@buggy("the same in an attribute of an object", "the model's return value")
def attribute_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(lambda texts: [SimpleNamespace(inner=SimpleNamespace(texts=texts))])


@buggy("the same in the closure of a function", "the model's return value")
def closure_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(lambda texts: lambda: texts)


@buggy("the same in the arguments of a `functools.partial`", "the model's return value")
def partial_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(lambda texts: functools.partial(len, texts))


@buggy("a value of the first step that passed no barrier", "the model's return value")
def first_step_beside_the_barrier() -> Callable[[], Any]:
    def program() -> Any:
        z = first = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            first = z if t == 0 else first
            observe(t, z)
            z = barrier(z)
        return [str(int(each)) for each in first]

    return program


@buggy("a dictionary keyed by particle that a factor reads", "log-probabilities of the next step")
def dictionary_in_a_factor() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        seen: dict[int, int] = {}
        for t in range(STEPS):
            z = latent(t, z)
            pyro.factor(f"again_{t}", torch.tensor([0.7 * (seen.get(n) == int(each)) for n, each in enumerate(z)]))
            observe(t, z)
            seen = {n: int(each) for n, each in enumerate(z)}
            z = barrier(z)
        return z

    return program


@buggy("state in a closure", "log-probabilities of the next step")
def state_in_a_closure() -> Callable[[], Any]:
    def program() -> Tensor:
        last = nothing()

        def move(t: int) -> Tensor:
            nonlocal last
            last = latent(t, last)
            return last

        z = last
        for t in range(STEPS):
            z = move(t)
            observe(t, z)
            z = barrier(z)
        return z

    return program


_GLOBAL: dict[str, Tensor] = {}


@buggy("state in a global variable", "log-probabilities of the next step")
def state_in_a_global() -> Callable[[], Any]:
    def program() -> Tensor:
        _GLOBAL["z"] = nothing()
        for t in range(STEPS):
            _GLOBAL["z"] = latent(t, _GLOBAL["z"])
            observe(t, _GLOBAL["z"])
            barrier(_GLOBAL["z"])
        return _GLOBAL["z"]

    return program


@buggy("a cache by step that outlives the run", "log-probabilities, which the replay reads from the cache")
def cache_by_step() -> Callable[[], Any]:
    cache: dict[int, Tensor] = {}

    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            if t not in cache:
                cache[t] = EMISSION[z][..., 0].log()
            pyro.factor(f"score_{t}", cache[t])
            z = barrier(z)
        return z

    return program


@buggy("random numbers outside of sites", "the generators, whose states change between sites: the audit refuses the model")
def random_numbers_outside() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            pyro.sample(f"y_{t}", dist.Normal(z + torch.randn(z.shape), 1.0), obs=torch.tensor(1.0))
            z = barrier(z)
        return z

    return program


@buggy("random numbers outside of sites, seeded by the model", "log-probabilities: particles have moved, the numbers have not")
def seeded_numbers_outside() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(t))
            pyro.sample(f"y_{t}", dist.Normal(z + noise, 1.0), obs=torch.tensor(1.0))
            z = barrier(z)
        return z

    return program


@buggy("an `.item()` branch on the first particle", "log-probabilities: another particle is the first")
def branch_on_the_first_particle() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(8):
            z = latent(t, z)
            observe(t, z if int(z[0]) == 0 else 2 - z)
            z = barrier(z)
        return z

    return program


@buggy("the number of the particle as data", "log-probabilities: particles have moved, numbers have not")
def number_of_the_particle() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            pyro.factor(f"slot_{t}", 0.1 * torch.arange(len(z)) * (z == 1))
            z = barrier(z)
        return z

    return program


@buggy("a part of the state that one branch leaves out of the barrier", "log-probabilities of the next step")
def barrier_left_out_of_a_branch() -> Callable[[], Any]:
    def program() -> Tensor:
        z = count = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            count = count + (z == 0)
            pyro.factor(f"many_{t}", 0.5 * count.float())
            if t == 1:
                z = barrier(z)
            else:
                z, count = barrier((z, count))
        return count

    return program


@buggy("a context extended once more beside the barrier", "tokens of the context that the model returns")
def context_of_before_the_barrier() -> Callable[[], Any]:
    def program() -> Any:
        ctx = LM.start("a")
        longer = ctx
        for t in range(STEPS):
            step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=";", max_tokens=2))
            ctx = ctx.extend(step, stop=";")
            longer = longer.extend(step, stop=";")
            pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
            ctx = barrier(ctx)
        return longer

    return program


@buggy("a deterministic site of a history that did not pass the barrier", "the deterministic site's value")
def deterministic_of_stale_history() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        total: Any = 0
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            total = total + z
            z = barrier(z)
        pyro.deterministic("total", total, event_dim=0)
        return z

    return program


@buggy(
    "a factor of the whole population, such as its mean",
    "log-probabilities, where resampling has changed the population; the mean of the same particles is the same in any order",
    never_resampled=False,
)
def population_mean() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            pyro.factor(f"mean_{t}", (z == 0).float() - z.float().mean().expand(z.shape))
            z = barrier(z)
        return z

    return program


# Not caught ------------------------------------------------------------------------------------------------------------------------------

CONSISTENT = "nothing: it is a consistent model, though not the one that was meant"


@buggy("a context extended twice by the same step", CONSISTENT, False, False)
def context_extended_twice() -> Callable[[], Any]:
    def program() -> Any:
        ctx = LM.start("a")
        for t in range(2):
            step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=";", max_tokens=2))
            ctx = ctx.extend(step, stop=";").extend(step, stop=";")
            pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
            ctx = barrier(ctx)
        return ctx

    return program


@buggy("an observation counted twice", CONSISTENT, False, False)
def observation_counted_twice() -> Callable[[], Any]:
    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            pyro.factor(f"again_{t}", EMISSION[z][..., t % 2].log())
            z = barrier(z)
        return z

    return program


@buggy("a history in an iterator that is returned", "nothing: looking into it would use it up", False, False)
def iterator_beside_the_barrier() -> Callable[[], Any]:
    return paths_beside_the_barrier(iter)


class Collector:
    """Outlives the run."""

    texts: list[str]

    def take(self, texts: list[str]) -> Collector:
        self.texts = texts
        return self


@buggy("a history in an object that outlives the run, which is returned", "nothing: the replay writes over it", False, False)
def object_of_the_callers() -> Callable[[], Any]:
    return paths_beside_the_barrier(Collector().take)


@buggy("results collected in a list of the caller's", "nothing: they are neither sites nor returned", False, False)
def results_beside_the_model() -> Callable[[], Any]:
    collected: list[Tensor] = []

    def program() -> Tensor:
        z = nothing()
        for t in range(STEPS):
            z = latent(t, z)
            observe(t, z)
            collected.append(z)
            z = barrier(z)
        return z

    return program
