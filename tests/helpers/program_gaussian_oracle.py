"""The exact answer of a linear Gaussian program, in plain Python, and of any program."""

from __future__ import annotations

import math
import random
from typing import Any

from tests.helpers.program_ast import AnyProgram, GaussianProgram, TokenProgram
from tests.helpers.program_oracle import Answer, Oracle, Statistic
from tests.helpers.program_token_oracle import TokenOracle


def oracle_of(program: AnyProgram, power: float = 1.0) -> Any:
    if isinstance(program, TokenProgram):
        return TokenOracle(program, power)
    return GaussianOracle(program, power) if isinstance(program, GaussianProgram) else Oracle(program, power)


def expected_power(program: AnyProgram, moment: float, proposed: bool = False) -> list[float]:
    """``E[w^moment]`` of the importance weights of each population."""
    if isinstance(program, GaussianProgram):  # of the prior also where the weights are of proposals, which are wide
        return GaussianOracle(program, moment).answer().evidence
    if isinstance(program, TokenProgram):
        return TokenOracle(program).moments(moment, proposed)
    return Oracle(program, moment=moment, proposed=proposed).answer().evidence


class Joint:
    """A joint normal distribution that grows by linear equations and is conditioned on observations."""

    def __init__(self) -> None:
        self.mean: list[float] = []
        self.cov: list[list[float]] = []
        self.log_evidence = 0.0

    def grow(self, weights: dict[int, float], constant: float, variance: float) -> int:
        """A new variable: a weighted sum of older ones, a constant, and noise."""
        row = [sum(w * self.cov[k][m] for k, w in weights.items()) for m in range(len(self.mean))]
        self.mean.append(constant + sum(w * self.mean[k] for k, w in weights.items()))
        for old, value in zip(self.cov, row, strict=True):
            old.append(value)
        self.cov.append([*row, variance + sum(w * row[k] for k, w in weights.items())])
        return len(self.mean) - 1

    def observe(self, k: int, factor: float, noise: float, y: float, scale: float) -> None:
        """``Normal(y; factor x_k, noise)^scale``."""
        if scale == 0:
            return
        # The power of a normal density is a normal density of variance noise^2 / scale, times a constant.
        self.log_evidence += 0.5 * (1 - scale) * math.log(2 * math.pi * noise**2) - 0.5 * math.log(scale)
        variance = noise**2 / scale + factor**2 * self.cov[k][k]
        error = y - factor * self.mean[k]
        self.log_evidence += -0.5 * error**2 / variance - 0.5 * math.log(2 * math.pi * variance)
        gain = [factor * row[k] / variance for row in self.cov]
        self.mean = [m + g * error for m, g in zip(self.mean, gain, strict=True)]
        self.cov = [[c - g * h * variance for c, h in zip(row, gain, strict=True)] for row, g in zip(self.cov, gain, strict=True)]

    def draw(self, rng: random.Random) -> list[float]:
        """By Cholesky's factor."""
        n = len(self.mean)
        lower = [[0.0] * n for _ in range(n)]
        for a in range(n):
            for b in range(a + 1):
                rest = self.cov[a][b] - sum(lower[a][k] * lower[b][k] for k in range(b))
                lower[a][b] = math.sqrt(max(rest, 0.0)) if a == b else rest / lower[b][b]
        noise = [rng.gauss(0, 1) for _ in range(n)]
        return [m + sum(w * e for w, e in zip(row, noise, strict=True)) for m, row in zip(self.mean, lower, strict=True)]


class GaussianOracle:
    """Exact answers of a Gaussian program; its statistics are indicators of ``variable > value``."""

    def __init__(self, program: GaussianProgram, power: float = 1.0) -> None:
        self.program = program
        self.problems = max(program.problems, 1)
        self.joints: list[Joint] = []
        self.places: list[dict[str, int]] = []
        joint = Joint()
        shared = joint.grow({}, 0.0, 1.0) if program.theta and program.theta_shared else None
        for i in range(self.problems):
            if shared is None:
                joint = Joint()
            theta = shared if shared is not None else joint.grow({}, 0.0, 1.0) if program.theta else None
            names = {} if theta is None else {"theta": theta}
            before: int | None = None
            for t, step in enumerate(program.steps):
                weights = ({} if before is None else {before: step.a[i]}) | ({} if theta is None else {theta: step.b[i]})
                before = joint.grow(weights, step.c[i], step.sd[i] ** 2)
                joint.observe(before, step.h[i], step.noise[i], step.y[i], step.scale * power)
                names[f"z_{t}"] = before
            self.joints.append(joint)
            self.places.append(names)

    def answer(self) -> Answer:
        joints = self.joints if self.program.independent or not self.program.problems else self.joints[-1:]
        means = {s: [[self.mean(s, i)] for i in range(self.problems)] for s in self.statistics()}
        return Answer([math.exp(joint.log_evidence) for joint in joints], means)

    def statistics(self) -> list[Statistic]:
        positive = {"theta"} if self.program.theta_positive else set()
        return [Statistic(((name, value),)) for name in self.places[0] for value in ((0.6, 1.6) if name in positive else (-0.5, 0.5))]

    def mean(self, statistic: Statistic, problem: int) -> float:
        ((name, value),) = statistic.events
        if name == "theta" and self.program.theta_positive:
            value = math.log(value)
        k, joint = self.places[problem][name], self.joints[problem]
        return 0.5 * math.erfc((value - joint.mean[k]) / math.sqrt(2 * joint.cov[k][k]))

    def posterior_draws(self, count: int, rng: random.Random) -> list[dict[str, list[float]]]:
        return [self.posterior_draw(rng) for _ in range(count)]

    def posterior_draw(self, rng: random.Random) -> dict[str, list[float]]:
        together = self.program.problems and not self.program.independent
        drawn = [self.joints[-1].draw(rng)] * self.problems if together else [joint.draw(rng) for joint in self.joints]
        found = {name: [values[places[name]] for values, places in zip(drawn, self.places, strict=True)] for name in self.places[0]}
        if self.program.theta and self.program.theta_shared:
            found["theta"] = found["theta"][:1]
        if self.program.theta_positive:
            found["theta"] = [math.exp(value) for value in found["theta"]]
        return found
