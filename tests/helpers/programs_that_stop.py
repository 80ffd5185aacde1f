"""Chains that stop once every particle is done, with states that tell which particles are, or do not."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_llm.inference import barrier
from tests.helpers.exact import END, AbsorbingCategorical, Chain


class Particles:
    """A state that tells which particles are done."""

    def __init__(self, x: Tensor, code: Tensor, done: Tensor) -> None:
        self.x, self.code, self.done = x, code, done

    @property
    def batch_shape(self) -> torch.Size:
        return self.done.shape

    def reorder(self, index: Tensor) -> Particles:
        return Particles(*(tensor.expand(index.shape).gather(0, index) for tensor in (self.x, self.code, self.done)))


class Stopping(Chain):
    """Stops once every particle is done, so that short trajectories lack sites."""

    tells = True

    def walk(self, batch: torch.Size = torch.Size()) -> Any:
        x, code, done = (torch.zeros(batch, dtype=dtype) for dtype in (torch.long, torch.long, torch.bool))
        for t in range(self.length):
            x = pyro.sample(f"x_{t}", AbsorbingCategorical(self.init if t == 0 else self.transition[x.clamp(min=0)], ~done))
            code = code * (self.num_symbols + 1) + x + 1
            pyro.factor(f"y_{t}", self.log_factor(t, code, done))
            done = done | (x == END)
            if self.last_barrier or t + 1 < self.length:
                if self.tells:
                    state = barrier(Particles(x, code, done))
                    x, code, done = state.x, state.code, state.done
                else:
                    x, code, done = barrier((x, code, done))
            if done.all():
                break
        return code


class Silent(Stopping):
    """As :class:`Stopping`, but the barrier does not see which particles are done."""

    tells = False


def three_symbols(length: int, ends: bool, seed: int = 0, kind: type[Chain] = Chain) -> Chain:
    """With two symbols, all trajectories that are not done are the same where a symbol ends them."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    potentials = [0.05 + 3 * rand(4 ** (t + 1)) ** 3 for t in range(length)]
    return kind(rand(3).softmax(0), (3 * rand(3, 3)).softmax(-1), potentials, ends, last_barrier=False)
