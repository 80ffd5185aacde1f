"""Adaptive weighted rejection: weights and programs with every draw enumerated, whatever the resampler; other weights are rejected."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import PAD, SMC, Context, LLMStep, TabularLM, barrier
from ppl_llm.constraints import Predicate
from ppl_llm.inference import RESAMPLERS
from ppl_llm.inference.handlers.particle_messenger import ParticleMessenger
from ppl_llm.lm.decoding import constrained_sampler
from ppl_llm.lm.decoding.rejection import adaptive_rejection, inverse_cdf_draw
from tests.helpers.constraint_mutants import WRONG_ADAPTIVE_REJECTIONS
from tests.helpers.exact import num_uniforms, uniform_cuts

Draw = Callable[[Tensor], int]


def outcomes(run: Callable[[Draw], Any]) -> Iterator[tuple[float, Any]]:
    """Every outcome of a function of draws, with its probability: the draws made so far are made again, the last one differently."""
    script: list[int] = []
    made: list[tuple[list[int], int]] = []
    probabilities: list[float] = []

    def draw(masses: Tensor) -> int:
        possible = masses.nonzero()[:, 0].tolist()
        place = script[len(made)] if len(made) < len(script) else 0
        made.append((possible, place))
        probabilities.append(float(masses[possible[place]] / masses.sum()))
        return int(possible[place])

    while True:
        made.clear()
        probabilities.clear()
        result = run(draw)
        yield math.prod(probabilities), result
        while made and made[-1][1] + 1 == len(made[-1][0]):
            made.pop()
        if not made:
            return
        script[:] = [place for _, place in made]
        script[-1] += 1


# the draw -------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
@settings(max_examples=40, deadline=None)
def test_weights_are_unbiased_for_each_token(odds: list[int], data: Any) -> None:
    allowed = [data.draw(st.booleans()) for _ in odds]
    masses = torch.tensor(odds, dtype=torch.float64)
    found, whole = torch.zeros(len(odds), dtype=torch.float64), 0.0
    for probability, (token, estimate) in outcomes(lambda draw: adaptive_rejection(masses.clone(), lambda v: allowed[v], draw)):
        found[token] += probability * estimate
        whole += probability
    expected = masses * torch.tensor(allowed) / max(float(masses.sum()), 1.0)
    assert whole == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("wrong", WRONG_ADAPTIVE_REJECTIONS)
def test_rejects_other_weights(wrong: Any) -> None:
    """Errors found: 0.29, 0.16 and 0.57."""
    masses = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    mean = sum(p * estimate for p, (_, estimate) in outcomes(lambda draw: wrong(masses.clone(), lambda v: v > 0, draw)))
    assert abs(mean - 3 / 7) > 0.1


def test_draws_are_made_by_inverse_cdf() -> None:
    masses = torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert [inverse_cdf_draw(u)(masses) for u in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0 - 2**-53, 1.0)] == [1, 1, 3, 3, 4, 4, 4]


# programs -------------------------------------------------------------------------------------------------------------------------------

SYMBOLS = ["a", "b", "$"]
LM = TabularLM(torch.tensor([[3.0, 2.0, 1.0], [1.0, 4.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64).log(), SYMBOLS, eos="$")
FACTOR = torch.tensor(2.0, dtype=torch.float64)


def program(lengths: tuple[int, ...]) -> Context:
    """Steps of so many tokens after the prompt "a"; a factor where the text has an even number of tokens, the prompt's included."""
    ctx = LM.start("a")
    for t, length in enumerate(lengths):
        ctx = ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=length)), stop=())
        pyro.factor(f"accept_{t}", torch.where(ctx.lengths % 2 == 0, FACTOR.log(), 0.0))
        ctx = barrier(ctx)
    return ctx


@dataclass
class Asked:
    """A program under a predicate, and the same sums in plain Python.

    :ivar tuple refused: texts that may not stand.
    :ivar tuple ends: lengths at which a text may end.
    """

    lengths: tuple[int, ...]
    refused: tuple[str, ...]
    ends: tuple[int, ...]

    @property
    def constraint(self) -> Predicate:
        return Predicate(lambda text: text not in self.refused, lambda text: len(text) in self.ends)

    def expected(self) -> dict[str, float]:
        probs = LM.logits.softmax(-1)
        table: dict[str, float] = defaultdict(float)

        def grow(text: str, mass: float, rest: tuple[int, ...]) -> None:
            if not rest or text.endswith("$"):
                table[text] += mass * (float(FACTOR) if len(text) % 2 else 1.0) ** len(rest)
                return
            last = SYMBOLS.index(text[-1]) if text else 0
            for v, symbol in enumerate(SYMBOLS):
                if (len(text) in self.ends) if symbol == "$" else (text + symbol not in self.refused):
                    grown, left = text + symbol, rest[0] - 1
                    over = left == 0 or symbol == "$"
                    factor = float(FACTOR) if over and len(grown) % 2 else 1.0
                    grow(grown, mass * float(probs[last, v]) * factor, rest[1:] if over else (left, *rest[1:]))

        grow("", 1.0, self.lengths)
        return table


class DrawnCells:
    """A resampler that draws the cells of its uniforms in which the outcome is constant."""

    def __init__(self, scheme: str) -> None:
        self.__name__, self.scheme = scheme, scheme
        self.draw: Draw

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        if bool((log_weights == -torch.inf).all()):
            return torch.arange(len(log_weights))
        points = []
        for k in range(num_uniforms(self.scheme, len(log_weights))):
            edges = uniform_cuts(self.scheme, log_weights, k)
            cell = self.draw(edges.diff().clamp(min=0))
            points.append((edges[cell] + edges[cell + 1]) / 2)
        return RESAMPLERS[self.scheme](log_weights, torch.stack(points))


def error(asked: Asked, num_particles: int, scheme: str, threshold: float, weigh: Any = adaptive_rejection) -> float:
    """Largest error of E[1], E[Z-hat] and E[Z-hat W(x)] over texts x, with all randomness enumerated."""
    cells = DrawnCells(scheme)
    smc = SMC(
        partial(program, asked.lengths),
        num_particles,
        resampler=cells,
        ess_threshold=threshold,
        proposals=asked.constraint,
    )
    found: dict[str, float] = defaultdict(float)
    whole = 0.0

    def run(draw: Draw) -> list[tuple[str, float]]:
        cells.draw = draw
        patch.setattr(constrained_sampler, "inverse_cdf_draw", lambda u: draw)
        posterior = smc.run()
        masses = (posterior.log_evidence.exp() * posterior.weights).nan_to_num(0.0)
        rows = posterior.value.tokens.tolist()
        texts = ["".join(SYMBOLS[v] for v in row[1:] if v != PAD) for row in rows]
        return list(zip(texts, masses.tolist(), strict=True))

    with pytest.MonkeyPatch.context() as patch:
        # A run whose particles are all dead has the evidence estimate zero.
        patch.setattr(ParticleMessenger, "check_alive", lambda messenger: None)
        patch.setattr(constrained_sampler, "adaptive_rejection", weigh)
        for probability, particles in outcomes(run):
            whole += probability
            for text, mass in particles:
                found[text] += probability * mass
    expected = asked.expected()
    return max(
        abs(whole - 1),
        abs(sum(found.values()) - sum(expected.values())),
        *(abs(found[text] - expected.get(text, 0.0)) for text in {*found, *expected}),
    )


LONG = Asked((1, 2), ("aa", "bb", "abb", "bbb", "bba"), (1, 3))
"""Ends, and dead ends: after "a", "ab" is followed by "aba" only; "bb" is refused, "ba" is followed by anything."""
SHORT = Asked((1, 1), ("aa", "ba", "bb"), ())
"""A dead end after "b"; few outcomes, for two particles."""


def test_evidence_of_one_particle() -> None:
    assert len(LONG.expected()) == 5
    assert error(LONG, 1, "systematic", 0.0) < 1e-10


SCHEMES = [(scheme, 1.0) for scheme in sorted(RESAMPLERS)] + [("systematic", 0.0), ("systematic", 0.7)]


@pytest.mark.parametrize(("scheme", "threshold"), SCHEMES)
def test_evidence_of_two_particles(scheme: str, threshold: float) -> None:
    assert error(SHORT, 2, scheme, threshold) < 1e-10


def test_rejects_programs_with_other_weights() -> None:
    """Errors found: 0.25, 0.15 and 0.50."""
    assert min(error(SHORT, 2, "systematic", 1.0, wrong) for wrong in WRONG_ADAPTIVE_REJECTIONS) > 0.1
