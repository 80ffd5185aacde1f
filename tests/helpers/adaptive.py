"""Adaptive budgets in plain Python, on models whose draws are told."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_llm.inference import count

PROBS = (0.5, 0.3, 0.2)
"""Of the answers 0, 1 and 2."""
REWARDS = (0.25, 0.5, 0.875)
"""Of the answers; powers of two are exact."""
Rule = Callable[[Sequence[int]], bool]


@dataclass
class Told:
    """A program of one step whose draws are told: an answer, and the factor ``REWARDS`` of it.

    :ivar list script: the answers that remain to be drawn.
    :ivar int drawn: answers drawn.
    """

    script: list[int] = field(default_factory=list)
    drawn: int = 0

    def next(self, number: int) -> list[int]:
        assert number <= len(self.script), "a draw beyond the budget"
        answers, self.script = self.script[:number], self.script[number:]
        self.drawn += number
        return answers

    def __call__(self) -> Tensor:
        told = self

        class Answer(dist.Categorical):  # type: ignore[misc]
            def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
                shape = self._extended_shape(sample_shape)
                return torch.tensor(told.next(shape.numel())).reshape(shape)

        x = pyro.sample("x", Answer(torch.tensor(PROBS, dtype=torch.float64)))
        pyro.factor("y", torch.tensor(REWARDS, dtype=torch.float64).log()[x])
        return x


def remembering(algorithm: type[Any]) -> type[Any]:
    """The algorithm on :class:`Told`, each batch of which is run once for the answers that it is told: the same again gives the same."""
    memory: dict[tuple[int, ...], Any] = {}

    class Remembering(algorithm):  # type: ignore[misc]
        def run(self) -> Any:
            number = self.options.num_particles
            told = tuple(self.model.script[:number])
            if told in memory:
                self.model.next(number)
            else:
                memory[told] = super().run()
            return memory[told]

    return Remembering


def answer_of(value: Tensor) -> int:
    """Of a particle of :class:`Told` or :func:`drawn`."""
    return int(value)


def drawn(problems: Sequence[Any]) -> Tensor:
    """The same program for a list of problems, with draws of its own; each draw counts as a token."""
    with pyro.plate("problems", len(problems), dim=-1):
        x = pyro.sample("x", dist.Categorical(torch.tensor(PROBS, dtype=torch.float64)))
        pyro.factor("y", torch.tensor(REWARDS, dtype=torch.float64).log()[x])
        count(tokens_sampled=x.numel())
    return x


# Rules by their definitions ---------------------------------------------------------------------------------------------------------------


def beta_majority(confidence: float) -> Rule:
    """The Beta distribution function by exact integration of its polynomial density."""

    @cache
    def leads(v1: int, v2: int) -> Fraction:
        def integral(x: Fraction) -> Fraction:  # of p^v1 (1 - p)^v2
            return sum((Fraction((-1) ** k * math.comb(v2, k), v1 + k + 1) * x ** (v1 + k + 1) for k in range(v2 + 1)), Fraction(0))

        return 1 - integral(Fraction(1, 2)) / integral(Fraction(1))

    def rule(seen: Sequence[int]) -> bool:
        v1, v2 = ([n for _, n in Counter(seen).most_common(2)] + [0, 0])[:2]
        return leads(v1, v2) >= confidence

    return rule


def same_answers(window: int) -> Rule:
    return lambda seen: len(seen) >= window and len(set(seen[-window:])) == 1


def share(least: float) -> Rule:
    return lambda seen: len(seen) >= 2 and Counter(seen).most_common(1)[0][1] / len(seen) >= least


def weighted_share(least: float) -> Rule:
    """Of the rewards as weights; a single effective vote is none."""

    def rule(seen: Sequence[int]) -> bool:
        mass = [sum(REWARDS[a] for a in seen if a == answer) for answer in range(3)]
        effective = sum(mass) ** 2 / sum(REWARDS[a] ** 2 for a in seen)
        return effective >= 2 - 1e-9 and max(mass) >= least * sum(mass) - 1e-12

    return rule


def pandora(cost: float, prior: float = 1.0) -> Rule:
    """The best reward reaches the threshold, found by bisection."""

    def rule(seen: Sequence[int]) -> bool:
        rewards = [REWARDS[a] for a in seen]

        def gain(tau: float) -> float:
            return (sum(max(0.0, r - tau) for r in rewards) + prior * (1 - tau) ** 2 / 2) / (len(rewards) + prior)

        low, high = -1.0, 1.0
        if gain(0.0) <= cost:
            return True
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if gain(max(middle, 0.0)) > cost else (low, middle)
        return max(rewards) >= high - 1e-12

    return rule


def majority(seen: Sequence[int]) -> int:
    """Ties to the first seen."""
    return Counter(seen).most_common(1)[0][0]


def heaviest(seen: Sequence[int]) -> int:
    return max(dict.fromkeys(seen), key=lambda answer: seen.count(answer) * REWARDS[answer])


def best(seen: Sequence[int]) -> int:
    return max(seen, key=lambda answer: REWARDS[answer])


@dataclass(frozen=True)
class Reference:
    """A run by its definition.

    :ivar rule: when to stop.
    :ivar vote: the answer, given all that was drawn.
    """

    rule: Rule
    vote: Callable[[Sequence[int]], int]
    batch: int = 1
    most: int = 8
    doubling: bool = False

    def __call__(self, sequence: Sequence[int]) -> tuple[int, int]:
        """The number of draws, and the answer."""
        n = 0
        while n < self.most:
            n = min(self.most, n + (max(self.batch, n) if self.doubling else self.batch))
            if self.rule(sequence[:n]):
                break
        return n, self.vote(sequence[:n])


def probability(answers: Sequence[int]) -> float:
    return math.prod(PROBS[answer] for answer in answers)


Joint = dict[tuple[int, int], float]
"""Of (N, answer)."""


def joint_of(reference: Reference) -> Joint:
    """Over all sequences."""
    joint: Joint = Counter()  # type: ignore[assignment]
    for sequence in itertools.product(range(3), repeat=reference.most):
        joint[reference(sequence)] += probability(sequence)
    return joint


def enumerated(run: Callable[[Told], tuple[int, int]], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, int]]]:
    """What a run gives on each sequence that it tells apart, in order: on those that begin with the N answers of one it draws no more.

    :param run: from a program to (N, answer).
    """
    sequence: tuple[int, ...] | None = (0,) * most
    while sequence is not None:
        program = Told(list(sequence))
        found = run(program)
        begin = sequence[: program.drawn]
        yield begin, found
        sequence = _next(begin, most)


def _next(begin: tuple[int, ...], most: int) -> tuple[int, ...] | None:
    """The first sequence after all that begin so."""
    last = len(begin)
    while last and begin[last - 1] == 2:
        last -= 1
    return None if not last else (*begin[: last - 1], begin[last - 1] + 1, *(0,) * (most - last))
