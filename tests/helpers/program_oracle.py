"""The exact answer of a random program, in plain Python: loops over all latent values, and products of floats.

Semantics, statement by statement. A latent site of probability p multiplies the mass by p, under ``poutine.scale(s)`` by p^s; a masked one
by p (it is drawn from its prior and scores nothing, so it integrates to one). A factor g, or an observation of probability g, multiplies it
by g^s; a masked one by 1. A conditioned site is an observation. A replayed site has its value and weighs nothing.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.helpers.program_ast import (
    ELEMENT,
    FN_MASK,
    NO_MASK,
    PAD,
    POUTINE_MASK,
    SHARED,
    Barrier,
    Draw,
    End,
    Note,
    Program,
    Score,
    lookup,
)

Env = dict[str, Any]
"""Variables; those of elements are tuples. ``done`` among them; ``site:`` and a site's name for its raw value."""


@dataclass(frozen=True)
class Statistic:
    """A function of a path with values in [0, 1] (of a Gaussian: of any size).

    :ivar tuple events: pairs of a variable and a value, all of which must hold; ``("parity", 1)``: the sum of all variables is odd.
    """

    events: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return " and ".join(f"{name} = {value}" for name, value in self.events)


@dataclass(frozen=True)
class Answer:
    """
    :ivar list evidence: of each population.
    :ivar dict means: of each statistic, for each problem (one where there is no plate), for each element (one where it is not of elements).
    """

    evidence: list[float]
    means: dict[Statistic, list[list[float]]]


class Oracle:
    """Exact answers of a discrete program.

    :param float power: of the likelihood.
    :param float moment: instead, the expectation of importance weights to this power: 2 tells how uneven they are.
    :param bool proposed: whether those weights are of proposals.
    """

    def __init__(self, program: Program, power: float = 1.0, *, moment: float | None = None, proposed: bool = False) -> None:
        self.program, self.power = program, power if moment is None else moment
        self.moment, self.proposed = moment, proposed
        self.problems = max(program.problems, 1)
        first = next((k for k, s in enumerate(program.statements) if getattr(s, "where", "") != SHARED), len(program.statements))
        last = max((k + 1 for k, s in enumerate(program.statements) if getattr(s, "where", "") != SHARED), default=0)
        self.before, self.inside, self.after = program.statements[:first], program.statements[first:last], program.statements[last:]
        shared = self.walk((*self.before, *self.after), 0)
        self.roots = [(mass, env, [self.walk(self.inside, i, env) for i in range(self.problems)]) for mass, env in shared]
        self.sums = [[math.fsum(mass for mass, _ in paths) for paths in each] for _, _, each in self.roots]
        self.totals = [mass * math.prod(sums) for (mass, _, _), sums in zip(self.roots, self.sums, strict=True)]

    def walk(self, statements: tuple[Any, ...], problem: int, env: Env | None = None) -> list[tuple[float, Env]]:
        """Every path of positive mass through statements."""
        paths: list[tuple[float, Env]] = [(1.0, {"done": False, **(env or {})})]
        for s in statements:
            if isinstance(s, Barrier):
                continue
            paths = [grown for mass, each in paths for grown in self.step(s, problem, mass, each) if grown[0] > 0]
        return paths

    def step(self, s: Any, problem: int, mass: float, env: Env) -> Iterator[tuple[float, Env]]:
        if isinstance(s, End):
            yield mass, {**env, "done": env["done"] or env[s.variable] == 0}
        elif isinstance(s, Note):
            total = sum(env[s.parents[0]]) if s.over_elements else sum(env[name] for name in s.parents)
            yield mass, {**env, s.variable: total}
        elif isinstance(s, Score):
            yield mass * math.prod(self.score(s, problem, j, env) for j in self.places(s)), env
        elif s.where == ELEMENT:
            for each in itertools.product(range(s.size), repeat=self.program.elements):
                yield mass * math.prod(self.draw(s, problem, j, env, v) for j, v in enumerate(each)), {**env, s.variable: each}
        else:
            for v in range(s.size):
                effective = 0 if env["done"] and s.mask in (FN_MASK, POUTINE_MASK) else v
                yield mass * self.draw(s, problem, 0, env, v), {**env, s.variable: effective, f"site:{s.site}": v}

    def places(self, s: Any) -> range:
        return range(self.program.elements if s.where == ELEMENT else 1)

    def entry(self, s: Any, problem: int, j: int, env: Env) -> Any:
        lead = [problem] if self.program.problems and s.where != SHARED else []
        values = [env[name][j] if isinstance(env[name], tuple) else env[name] for name in s.parents]
        return lookup(s.table, *lead, *([j] if s.where == ELEMENT else []), *values)

    def draw(self, s: Draw, problem: int, j: int, env: Env, value: int) -> float:
        """What a latent site's value multiplies the mass by."""
        if s.mask == PAD and env["done"]:
            p = float(value == 0)
        else:
            weights = self.entry(s, problem, j, env)
            p = weights[value] / sum(weights)
        masked = env["done"] and s.mask in (FN_MASK, POUTINE_MASK)
        if s.site in self.program.replay:
            return float(value == self.program.replay[s.site])
        if s.site in self.program.condition:
            likelihood = 1.0 if masked else power(p, s.scale * self.power)
            return likelihood if value == self.program.condition[s.site] else 0.0
        if self.moment is not None:
            q = p
            if self.proposed and s.site in self.program.proposals:
                q = self.program.proposals[s.site][value] / sum(self.program.proposals[s.site])
            if masked:
                return p
            return q * power(power(p, s.scale) / q, self.moment) if q > 0 else 0.0
        return p if masked else power(p, s.scale)

    def score(self, s: Score, problem: int, j: int, env: Env) -> float:
        if env["done"] and s.mask != NO_MASK:
            return 1.0
        entry = self.entry(s, problem, j, env)
        return power(entry[1] / sum(entry) if s.observed else entry, s.scale * self.power)

    # answers ------------------------------------------------------------------------------------------------------------------------

    def answer(self) -> Answer:
        total = math.fsum(self.totals)
        evidence = [math.fsum(paths) for paths in zip(*self.sums, strict=True)] if self.program.independent else [total]
        means: dict[Statistic, list[list[float]]] = {}
        for statistic in self.statistics():
            places = self.program.elements if any(self.of_elements(name) for name, _ in statistic.events) else 1
            means[statistic] = [[self.mean(statistic, i, j) / total for j in range(places)] for i in range(self.problems)]
        return Answer(evidence, means)

    def mean(self, statistic: Statistic, problem: int, j: int) -> float:
        parts = []
        for (_, _, each), sums, total in zip(self.roots, self.sums, self.totals, strict=True):
            if total > 0:
                inside = math.fsum(mass for mass, env in each[problem] if self.holds(statistic, env, j))
                parts.append(total * inside / sums[problem])
        return math.fsum(parts)

    def of_elements(self, name: str) -> bool:
        return any(s.variable == name and s.where == ELEMENT for s in self.program.draws)

    def holds(self, statistic: Statistic, env: Env, j: int) -> bool:
        for name, value in statistic.events:
            found = env[name] if name != "parity" else sum(env[s.variable] for s in self.parity()) % 2
            if (found[j] if isinstance(found, tuple) else found) != value:
                return False
        return True

    def parity(self) -> list[Draw]:
        """Variables of which the parity is taken."""
        return [s for s in self.program.draws if s.where != ELEMENT and not s.hidden]

    def statistics(self) -> list[Statistic]:
        """Every variable's values but one; the first and last variable together; the parity of all."""
        seen = [s for s in self.program.draws if not s.hidden]
        single = [Statistic(((s.variable, v),)) for s in seen for v in range(1, s.size)]
        notes = [s for s in self.program.statements if isinstance(s, Note) and s.site]
        single += [Statistic(((s.variable, v),)) for s in notes for v in range(1, s.size)]
        plain = self.parity()
        if len(plain) > 1:
            single.append(Statistic((("parity", 1),)))
            single += [Statistic(((plain[0].variable, a), (plain[-1].variable, b))) for a in range(2) for b in range(2)]
        return single

    def posterior_draws(self, count: int, rng: random.Random) -> list[dict[str, list[Any]]]:
        """Exact draws: for each, raw values of the latent sites, a value for each problem (for shared sites: one)."""
        found: list[dict[str, list[Any]]] = []
        roots = rng.choices(range(len(self.roots)), self.totals, k=count)
        for k, (_, shared, each) in enumerate(self.roots):
            size = roots.count(k)
            if size:
                chosen = [rng.choices([env for _, env in paths], [mass for mass, _ in paths], k=size) for paths in each]
                found += [self.raw(shared, envs) for envs in zip(*chosen, strict=True)]
        rng.shuffle(found)
        return found

    def raw(self, shared: Env, envs: tuple[Env, ...]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for s in self.program.draws:
            key = s.variable if s.where == ELEMENT else f"site:{s.site}"
            found[s.site] = [shared[key]] if s.where == SHARED else [env[key] for env in envs]
        return found


def power(p: float, exponent: float) -> float:
    return 1.0 if exponent == 0 else p**exponent if p > 0 else 0.0
