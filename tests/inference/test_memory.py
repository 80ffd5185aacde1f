"""A run that nobody refers to any more is freed at once, with every particle and every cache that its states hold.

Objects that refer to each other in a circle stay until Python looks for circles, which counts objects and knows nothing of their gigabytes.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import SMC, SMCFailed, barrier
from tests.helpers.algorithms import ALGORITHMS, SEARCHES

BUILDS = {**{name: algorithm.build for name, algorithm in ALGORITHMS.items() if not algorithm.not_for}, **SEARCHES}


class Held:
    """A state that a model threads through barriers, as contexts are; every one ever made is known."""

    made: ClassVar[weakref.WeakSet[Held]] = weakref.WeakSet()

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.made.add(self)

    @property
    def batch_shape(self) -> torch.Size:
        return self.tokens.shape

    def __len__(self) -> int:
        return len(self.tokens)

    def reorder(self, index: Tensor) -> Held:
        return Held(self.tokens.expand(-1, *index.shape[1:]).gather(0, index))

    def concatenate(self, others: list[Held]) -> Held:
        return Held(torch.cat([self.tokens, *(other.tokens for other in others)]))

    def select_plate(self, dim: int, i: int) -> Held:
        return Held(self.tokens.select(dim, i))

    def __getitem__(self, i: int) -> Held:
        return Held(self.tokens[i])


def program() -> Held:
    held = Held(torch.zeros((), dtype=torch.long))
    for t in range(3):
        x = pyro.sample(f"x_{t}", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample(f"y_{t}", dist.Bernoulli(0.1 + 0.4 * x.double()), obs=torch.tensor(1.0))
        held = barrier(Held(x))
    return held


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left_over() -> int:
    return len(Held.made)


@pytest.mark.parametrize("name", BUILDS)
def test_a_run_is_freed_with_its_posterior(name: str) -> None:
    pyro.set_rng_seed(0)
    arguments = ALGORITHMS[name].run if name in ALGORITHMS else {}
    posterior = BUILDS[name](program, 0).run(**arguments)
    assert left_over() > 0
    del posterior
    assert left_over() == 0


def test_slices_and_failures_are_freed() -> None:
    pyro.set_rng_seed(0)
    for _ in SMC(program, 4).iterate():
        pass
    del _

    def hopeless() -> None:
        program()
        pyro.sample("never", dist.Bernoulli(torch.zeros(4)), obs=torch.tensor(1.0))
        pyro.sample("impossible", dist.Delta(torch.zeros(4), log_density=torch.full((4,), -torch.inf)), obs=torch.zeros(4))

    with pytest.raises(SMCFailed) as caught:
        SMC(hopeless, 4).run()
    assert left_over() > 0  # the partial posterior is still there
    del caught
    assert left_over() == 0


def test_a_circle_would_be_noticed() -> None:
    def kept(posterior: Any) -> None:
        circle: list[Any] = [posterior]
        circle.append(circle)

    SMC(program, 4, callback=kept).run()
    assert left_over() > 0
    gc.collect()
    assert left_over() == 0
