"""The exact answer of a random program of tokens, in plain Python: every text, token by token."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.helpers.program_ast import GLOBAL, LOCAL, NONE, TokenProgram
from tests.helpers.program_oracle import Answer, Statistic

DEAD = -1


Step = tuple[tuple[int, ...], int, int, float, float]
"""Tokens, the last token, the constraint's state, and the probabilities p and q."""


class Text(NamedTuple):
    """One outcome of a problem.

    :ivar tuple steps: the tokens of each step.
    :ivar float p: its probability under the model, with the indicator of a global constraint.
    :ivar float q: under the proposals.
    :ivar float factor: product of its factors.
    """

    steps: tuple[tuple[int, ...], ...]
    p: float
    q: float
    factor: float


class TokenOracle:
    """Exact answers.

    :param float power: of the factors.
    """

    def __init__(self, program: TokenProgram, power: float = 1.0) -> None:
        self.program, self.power = program, power
        self.end = len(program.odds) - 1
        self.texts = [list(self.grown(prompt)) for prompt in program.prompts]
        self.masses = [[text.p * text.factor for text in texts] for texts in self.texts]

    # texts --------------------------------------------------------------------------------------------------------------------------

    def grown(self, prompt: int) -> Iterator[Text]:
        """Every outcome that the model or the proposals have."""

        def walk(steps: tuple[tuple[int, ...], ...], last: int, state: int, p: float, q: float, factor: float) -> Iterator[Text]:
            if len(steps) == self.program.steps:
                yield Text(steps, p, q, factor)
                return
            over = bool(steps) and self.end in sum(steps, ())
            for step, after, now, model, proposed in [((), last, state, 1.0, 1.0)] if over else self.step((), last, state, 1.0, 1.0):
                each = self.program.factors[after] if step else self.program.factors[-1]
                yield from walk((*steps, step), after, now, p * model, q * proposed, factor * each**self.power)

        return walk((), prompt, 0, 1.0, 1.0, 1.0)

    def step(self, step: tuple[int, ...], last: int, state: int, p: float, q: float) -> Iterator[Step]:
        """Steps that begin as one does."""
        program = self.program
        stopped = bool(step) and (step[-1] == self.end or (program.delimiter and step[-1] == 1))
        if stopped or len(step) == program.tokens:
            yield step, last, state, p, q
            return
        follow = [v for v in range(self.end + 1) if self.follows(state, v)]
        model, proposed = self.next_token(last, program.temperature), self.next_token(last, program.proposed or program.temperature)
        if not follow:  # a dead end: the step ends, and under a condition the text is impossible
            yield step, last, state, 0.0 if program.constrained == GLOBAL else p, q
            return
        total, total_proposed = sum(model[v] for v in follow), sum(proposed[v] for v in follow)
        for v in follow:
            now = state if v == self.end or program.constrained == NONE else program.arcs[state][v]
            own = model[v] / total if program.constrained == LOCAL else model[v]
            yield from self.step((*step, v), v, now, p * own, q * proposed[v] / total_proposed)

    def follows(self, state: int, v: int) -> bool:
        if self.program.constrained == NONE:
            return True
        return self.program.accepting[state] if v == self.end else self.program.arcs[state][v] != DEAD

    def next_token(self, last: int, temperature: float) -> list[float]:
        weights = [odds ** (1 / temperature) for odds in self.program.odds[last]]
        return [weight / sum(weights) for weight in weights]

    # answers ------------------------------------------------------------------------------------------------------------------------

    def moments(self, moment: float, proposed: bool) -> list[float]:
        """``E[w^moment]`` of the importance weights of each problem."""
        return [
            math.fsum(
                (text.q * (text.p * text.factor / text.q) ** moment) if proposed else text.p * text.factor**moment
                for text in texts
                if text.p > 0
            )
            for texts in self.texts
        ]

    def answer(self) -> Answer:
        totals = [math.fsum(masses) for masses in self.masses]
        means = {statistic: [[self.mean(statistic, i) / total] for i, total in enumerate(totals)] for statistic in self.statistics()}
        return Answer(totals, means)

    def statistics(self) -> list[Statistic]:
        """The steps that are likely; pairs of the first and the last one; whether the number of tokens is odd."""
        first, last = "step_0", f"step_{self.program.steps - 1}"
        likely = {name: self.likely(name) for name in (f"step_{t}" for t in range(self.program.steps))}
        found = [Statistic(((name, value),)) for name, values in likely.items() for value in values]
        if first != last:
            found += [Statistic(((first, a), (last, b))) for a in likely[first][:2] for b in likely[last][:2]]
        return [*found, Statistic((("parity", 1),))]

    def likely(self, name: str) -> list[int]:
        """The most probable values of a step over all problems, eight at most."""
        masses: dict[int, float] = {}
        for texts, each in zip(self.texts, self.masses, strict=True):
            for text, mass in zip(texts, each, strict=True):
                value = self.value(text, name)
                masses[value] = masses.get(value, 0.0) + mass / math.fsum(each)
        return sorted(masses, key=lambda value: (-masses[value], value))[:8]

    def value(self, text: Text, name: str) -> int:
        """A step as a number, its tokens plus one as digits; the parity of the text."""
        if name == "parity":
            return sum(map(len, text.steps)) % 2
        base, step = len(self.program.odds) + 1, text.steps[int(name.removeprefix("step_"))]
        return sum((token + 1) * base**k for k, token in enumerate(step))

    def mean(self, statistic: Statistic, problem: int) -> float:
        return math.fsum(
            mass
            for text, mass in zip(self.texts[problem], self.masses[problem], strict=True)
            if all(self.value(text, name) == value for name, value in statistic.events)
        )

    def posterior_draws(self, count: int, rng: random.Random) -> list[dict[str, list[list[int]]]]:
        """Exact draws: for each, the padded tokens of each step, one list for each problem."""
        chosen = [rng.choices(texts, masses, k=count) for texts, masses in zip(self.texts, self.masses, strict=True)]
        width = self.program.tokens
        return [
            {f"step_{t}": [[*text.steps[t], *[-1] * (width - len(text.steps[t]))] for text in texts] for t in range(self.program.steps)}
            for texts in zip(*chosen, strict=True)
        ]
