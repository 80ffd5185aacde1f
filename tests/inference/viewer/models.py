"""Runs to look at: the shapes that a page or a table has to cope with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_llm import SMC, ReasoningModel, TabularLM, TabularReward, barrier, reasoning

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 & "
SYMBOLS = ["g", "so ", HOSTILE, "\\boxed{1}", "\\boxed{2}", "\\boxed{<b>3</b>}", ";", "$"]


def walk(steps: int = 6, plates: int = 0) -> Any:
    """A hidden Markov model on the line; with ``plates`` as many independent ones."""

    def program() -> Tensor:
        z = torch.zeros(())
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 0.7), obs=torch.sin(torch.tensor(t / 4.0)))
            z = barrier(z)
        return z

    def several() -> Tensor:
        with pyro.plate("problems", plates, dim=-1):
            return program()

    return several if plates else program


def writer(max_steps: int = 12) -> ReasoningModel:
    """Steps of a few symbols, among them markup, and three answers; particles finish at different times."""
    logits = torch.full((8, 8), -torch.inf)
    for symbol in (0, 1, 2):
        logits[symbol] = torch.tensor([1.0, 0.6, 0.2, -2.2, -2.4, -3.0, 1.5, -torch.inf])
    logits[6] = torch.tensor([1.0, 0.6, 0.2, -1.5, -1.7, -2.1, -torch.inf, -torch.inf])
    logits[3:, 7] = 0.0
    logits[6, 7] = -torch.inf
    lm = TabularLM(logits, SYMBOLS, eos="$")
    prm = TabularReward(torch.tensor([0.9, 0.1, -0.9, 1.4, 0.4, -0.8, 0.3, 0.0]), bias=0.6, discount=0.5)
    return reasoning(lm, prm, max_steps=max_steps, stop=";", max_tokens=5)


def run(algorithm: Any, *args: Any, seed: int = 3) -> Any:
    pyro.set_rng_seed(seed)
    return algorithm.run(*args)


@cache
def solutions() -> Any:
    """16 particles that resample, die and finish."""
    return run(SMC(writer(), 16, ess_threshold=0.95), "g")


@cache
def three_problems() -> Any:
    return run(SMC(writer(8), 8, ess_threshold=0.9, max_plate_nesting=1), ["g", "gg", "g;"])
