"""LookAhead, exactly: every outcome of a filter with its look-ahead draws, enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Context, LookAhead, TabularLM, TabularReward, reasoning
from ppl_llm.inference import ParticlePosterior, systematic
from ppl_llm.lm.base import StepOptions, StepSample
from tests.helpers.exact import EnumeratedResampler

SYMBOLS = ["a", "b", "$"]
STEPS, PARTICLES, V = 2, 2, 3
_generator = torch.Generator().manual_seed(1)
LOGITS = torch.randn(V, V, generator=_generator, dtype=torch.float64)
REWARD = TabularReward(2.0 * torch.randn(V, generator=_generator), bias=-0.5, discount=0.6)


class EnumeratedLM(TabularLM):
    """Each call draws the next enumerated steps of one token, and notes their probability.

    :ivar list script: ``[particles, columns]`` token of each call.
    """

    script: list[Tensor]
    log_prob: Tensor

    def sample_step(self, context: Context, particles: Any, options: StepOptions) -> StepSample:
        token = self.script.pop(0)
        done = context.done.expand(token.shape)
        last = context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0].expand(token.shape)
        chosen = (self.logits / options.temperature).log_softmax(-1)[last, token]
        # What a finished particle does not use is chosen uniformly.
        self.log_prob = self.log_prob + torch.where(done, -math.log(V), chosen).sum(0)
        return StepSample(torch.where(done, -1, token)[..., None], torch.zeros(token.shape))


def program(lm: TabularLM, potential: str = "difference") -> Any:
    """prod_t r_t, in float64."""
    return reasoning(lm, REWARD, "twisted", potential=potential, aggregation="prod", stop="z", max_tokens=1, max_steps=STEPS)


def enumerate_filter(mutate: Callable[[LookAhead], Any], temperature: float = 1.7, power: float = 1.0) -> tuple[Tensor, ParticlePosterior]:
    """Probability of every outcome, and the posterior with a column for each: 3^6 draws of steps x 2^2 cells of the resampler."""
    draws = 2 * STEPS - 1  # a step and a look-ahead at each barrier, but no look-ahead in the last
    sizes = [V] * (draws * PARTICLES) + [PARTICLES] * STEPS
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).T.contiguous()
    columns = grid.shape[1]
    lm = EnumeratedLM(LOGITS, SYMBOLS, eos="$")
    lm.script = list(grid[: draws * PARTICLES].view(draws, PARTICLES, columns))
    lm.log_prob = torch.zeros(columns, dtype=torch.float64)
    model = program(lm)
    look_ahead = mutate(LookAhead.of(model, temperature=temperature, power=power))
    resampler = EnumeratedResampler(systematic, grid[draws * PARTICLES :].view(STEPS, 1, columns), "systematic")
    posterior = SMC(model, PARTICLES, resampler=resampler, ess_threshold=1.0, selection=look_ahead, max_plate_nesting=1).run(
        ["a"] * columns
    )
    log_prob = lm.log_prob
    for t, chosen in enumerate(posterior.resampled):
        log_prob = log_prob + torch.where(chosen, resampler.log_prob[t], -math.log(PARTICLES))
    return log_prob.exp(), posterior


def unnormalised() -> dict[tuple[int, ...], float]:
    """Plain Python: p(x) prod_t r_t of every trajectory."""
    probs = LOGITS.softmax(-1)
    table: dict[tuple[int, ...], float] = {}

    def grow(path: tuple[int, ...], mass: float) -> None:
        if len(path) == STEPS or path[-1:] == (2,):
            table[path] = mass
            return
        for v in range(V):
            grown = (*path, v)
            z = -0.5 + sum(float(REWARD.log_odds[u]) * 0.6**age for age, u in enumerate(reversed(grown)))
            z = float(torch.tensor(z, dtype=torch.float32))
            grow(grown, mass * float(probs[path[-1] if path else 0, v]) / (1 + math.exp(-z)))

    grow((), 1.0)
    return table


def error(probs: Tensor, posterior: ParticlePosterior) -> float:
    """Largest error of E[1], and of E[Z-hat sum_i W_i 1[x_i = x]] = p(x) prod r_t over trajectories x, relative to Z."""
    exact = unnormalised()
    total = sum(exact.values())
    tokens = torch.cat([posterior.sites[f"step_{t}"] for t in range(STEPS)], -1)
    mass = (probs * posterior.log_evidence.exp()) * posterior.weights
    worst = abs(float(probs.sum()) - 1)
    for path, value in exact.items():
        padded = torch.tensor((*path, *[-1] * (STEPS - len(path))))
        worst = max(worst, abs(float(mass[(tokens == padded).all(-1)].sum()) - value) / total)
    return worst


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (1.7, 1.0), (0.3, 2.0), (1.0, 0.0)])
def test_every_estimate_is_unbiased(temperature: float, power: float) -> None:
    """2916 outcomes of a filter of two particles, to 1e-7 (the reward model's log-odds are float32)."""
    assert error(*enumerate_filter(lambda look: look, temperature, power)) < 1e-7


def drops_residual_weights(look_ahead: LookAhead) -> Any:
    """Resampled by the look-ahead and then weighed alike: the look-ahead becomes a part of the target."""

    class Dropped(LookAhead):
        keeps_target = False

    look_ahead.__class__ = Dropped
    return look_ahead


def counts_it_twice(look_ahead: LookAhead) -> Any:
    """Weights multiplied by the look-ahead, not divided."""

    class Twice(LookAhead):
        def __call__(self, weights: Any, state: Any, step: int) -> Tensor:
            log_v = super().__call__(weights, state, step)
            weights.log_weights = 2 * log_v - weights.log_weights
            return log_v

    look_ahead.__class__ = Twice
    return look_ahead


@pytest.mark.parametrize("mutate", [drops_residual_weights, counts_it_twice])
def test_rejects_biased_look_aheads(mutate: Any) -> None:
    assert error(*enumerate_filter(mutate)) > 2e-2
