"""A reasoning program whose distribution is known: a language model and rewards given by small tables."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pyro
import torch

from ppl_llm import Context, LLMStep, StepReward, TabularLM, TabularReward, barrier

SYMBOLS = ["a", "b", ";", "$"]
MAX_STEPS, MAX_TOKENS = 3, 2
TEMPERATURE = 1.3

_generator = torch.Generator().manual_seed(3)
LM = TabularLM(torch.randn(4, 4, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
PRM = TabularReward(1.5 * torch.randn(4, generator=_generator), bias=-0.8, discount=0.7)


def solve(problem: str | list[str]) -> Context:
    """Written as a user would: several tokens to choose from, steps of several lengths, particles that finish at different times."""
    ctx = LM.start(problem)
    for t in range(MAX_STEPS):
        step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=";", max_tokens=MAX_TOKENS, temperature=TEMPERATURE))
        ctx = ctx.extend(step, stop=";")
        pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
        ctx = barrier(ctx)
    return ctx


def key(particle: Context) -> tuple[int, ...]:
    return tuple(particle.tokens[1 : int(particle.lengths)].tolist())


@cache
def trajectories() -> list[tuple[tuple[int, ...], int, float, tuple[float, ...], bool]]:
    """(tokens, steps, p(x), log-odds of each step, finished) in plain Python, without any code of the library but the two tables."""
    probs = (LM.logits / TEMPERATURE).softmax(-1)
    found = []

    def score(tokens: tuple[int, ...]) -> float:
        return -0.8 + sum(float(PRM.log_odds[v]) * 0.7**age for age, v in enumerate(reversed(tokens)))

    def grow(tokens: tuple[int, ...], in_step: int, steps: int, p: float, z: tuple[float, ...]) -> None:
        last = tokens[-1] if tokens else 0  # the prompt is "a"
        for v in range(4):
            grown, mass = (*tokens, v), p * float(probs[last, v])
            if v == 3 or v == 2 or in_step + 1 == MAX_TOKENS:
                scores = (*z, score(grown))
                if v == 3 or steps + 1 == MAX_STEPS:
                    found.append((grown, steps + 1, mass, scores, v == 3))
                else:
                    grow(grown, 0, steps + 1, mass, scores)
            else:
                grow(grown, in_step + 1, steps, mass, z)

    grow((), 0, 0, 1.0, ())
    return found


def distribution(weight: Any) -> dict[tuple[int, ...], float]:
    table: dict[tuple[int, ...], float] = defaultdict(float)
    for tokens, steps, p, z, _ in trajectories():
        table[tokens] += p * weight(steps, z)
    total = sum(table.values())
    return {tokens: mass / total for tokens, mass in table.items()}
