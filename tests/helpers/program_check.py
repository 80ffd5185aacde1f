"""Runs a cell on a program and compares it with the oracle."""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_llm.inference import SMCFailed, Trajectory, replicate
from tests.helpers.program_ast import (
    FN_MASK,
    POUTINE_MASK,
    AnyProgram,
    GaussianProgram,
    Note,
    Program,
)
from tests.helpers.program_cells import CELLS, CHAIN, ENUMERATED, EXACT, SEARCH, WEIGHTED, Cell, Expected, expected, may_kill
from tests.helpers.program_code import build
from tests.helpers.program_enumerated import enumerated_error
from tests.helpers.program_gaussian_oracle import expected_power, oracle_of
from tests.helpers.program_oracle import Answer, Statistic
from tests.helpers.program_report import Failure, Report
from tests.helpers.program_scores import mean_scores, worst, z_scores
from tests.helpers.program_values import stacked, variables

FIRST, CONFIRMED, AGAIN = 4.9, 5.5, 8
SUSPICIOUS, GLANCE = 2.5, 0.25
"""A chain is first looked at with a quarter of its replicas; nine of ten right ones raise no suspicion, so that the work is two fifths.
What would have z = 8 with all replicas is seen with probability 0.93, what would have z = 6 with probability 0.69."""

BLOCK = 500


class Checker:
    """A program with its exact answers.

    :param str seed: of the random numbers of all cells.
    :param float effort: multiplies the replicas.
    """

    def __init__(self, program: AnyProgram, seed: str, effort: float = 1.0) -> None:
        self.program, self.seed, self.effort = program, seed, effort
        self.model, self.proposals = build(program)
        self.oracles: dict[float, Any] = {1.0: oracle_of(program)}
        self.answer: Answer = self.oracles[1.0].answer()
        self.kills = may_kill(program)
        self.tests = 0
        self.attempt = 0
        self.draws: dict[tuple[int, float, int], list[dict[str, Tensor]]] = {}

    @cached_property
    def spread(self) -> dict[bool, float]:
        """Largest ``E[w^2] / E[w]^2``, without and with proposals."""
        return {proposed: self.uneven(proposed) for proposed in (False, True)}

    def uneven(self, proposed: bool) -> float:
        squares = expected_power(self.program, 2.0, proposed)
        return max(square / z**2 if z > 1e-150 else math.inf for square, z in zip(squares, self.answer.evidence, strict=True))

    def run(self, names: list[str] | None = None, cells: Mapping[str, Cell] = CELLS) -> Report:
        report = Report()
        for name in names if names is not None else cells:
            start = time.process_time()
            before = self.tests
            failure = self.check(name, cells[name])
            report.seconds[name] = time.process_time() - start
            if failure is None:
                report.passed_over.append(name)
            else:
                report.checked += 1
                report.tests += self.tests - before
                report.failures += [Failure(name, failure)] if failure else []
        return report

    def check(self, name: str, cell: Cell) -> str | None:
        """What is wrong; nothing is ``""``, and ``None`` a cell that is not run."""
        wanted = self.wanted(name, cell)
        if wanted is None:
            return None
        self.set_seed(name, 0)
        try:
            scores = self.looked_at(name, cell, wanted.exact)
        except Exception as error:  # a random program may break anything
            if isinstance(error, SMCFailed) and cell.kind == SEARCH and self.kills:  # a few particles of one population
                return ""
            return self.judge(error, wanted.words)
        if not wanted.exact:
            return f"was not refused: an error with one of {wanted.words} was expected"
        if isinstance(scores, str):
            return scores
        self.tests += len(scores)
        if not worst(scores) > FIRST:
            return ""
        self.set_seed(name, 1)
        again = self.scores(cell, AGAIN)
        assert not isinstance(again, str)
        wrong = {test: z for test, z in again.items() if not abs(z) < CONFIRMED and not abs(scores[test]) < FIRST}
        return "; ".join(f"{test}: z = {z:.1f}" for test, z in sorted(wrong.items(), key=lambda item: -abs(item[1]))[:3])

    def looked_at(self, name: str, cell: Cell, exact: bool) -> dict[str, float] | str:
        """z-scores; those of a chain with few replicas if they raise no suspicion."""
        if cell.kind != CHAIN or not exact:
            return self.scores(cell, 1, exact)
        scores = self.scores(cell, GLANCE)
        if isinstance(scores, str) or not worst(scores) > SUSPICIOUS:
            return scores
        self.set_seed(name, 2)
        return self.scores(cell, 1)

    def wanted(self, name: str, cell: Cell) -> Expected | None:
        """What the cell must do, if it is run and can be judged."""
        wanted = expected(self.program, name, cell)
        if wanted is None or (wanted.exact and not self.sees(cell)):
            return None
        return wanted

    def set_seed(self, name: str, attempt: int) -> None:
        self.attempt = attempt
        pyro.set_rng_seed(zlib.crc32(f"{self.seed}/{name}/{attempt}".encode()))

    @staticmethod
    def judge(error: Exception, words: tuple[str, ...]) -> str:
        """An expected refusal is a ValueError (of the package or of Pyro) that names what it refuses."""
        if isinstance(error, ValueError | RuntimeError) and not isinstance(error, SMCFailed) and any(word in str(error) for word in words):
            return ""
        wanted = f"; a refusal must have one of {words}" if words else ""
        return f"{type(error).__name__}: {str(error)[:300]}{wanted}"

    def sees(self, cell: Cell) -> bool:
        """Whether Monte Carlo of this size can judge the cell: importance sampling would know the evidence to 10 %."""
        return cell.kind != WEIGHTED or cell.replicas * self.effort * cell.particles / self.spread[cell.proposes] > 100

    # cells --------------------------------------------------------------------------------------------------------------------------

    def scores(self, cell: Cell, times: float, exact: bool = True) -> dict[str, float] | str:
        """z-scores by name of the test, or what is wrong with the form of the result.

        :param bool exact: whether there is an exact answer; a chain on a program that must be refused starts by itself.
        """
        replicas = max(int(cell.replicas * self.effort * times), 60)
        if cell.kind == SEARCH:
            return self.search(cell)
        if cell.kind == EXACT:
            return self.enumerated(cell)
        if cell.kind == ENUMERATED:
            assert isinstance(self.program, Program)
            error = enumerated_error(self.program, self.model, self.answer, cell.particles, cell.scheme, cell.ess_threshold)
            self.tests += 2 + len(self.answer.means)
            return error or {}
        built = cell.build(replicate(self.model, replicas, self.program.nesting), self.program.nesting + 1, self.proposals)
        with torch.no_grad():
            if cell.kind == CHAIN and not exact:
                built.run(2)
                return {}
            return self.chain(cell, built, replicas) if cell.kind == CHAIN else self.weighted(cell, built, replicas)

    def weighted(self, cell: Cell, built: Any, replicas: int) -> dict[str, float] | str:
        posterior = cell.run(built)
        wrong = self.form(posterior, replicas) or self.agrees_with_its_sites(posterior)
        if wrong:
            return wrong
        evidence = torch.tensor(self.answer.evidence, dtype=torch.float64)
        ratio = posterior.log_evidence.exp() / (evidence if self.program.independent else evidence[0])  # [R(, P)]
        if ratio.isnan().any() or not torch.equal(ratio == 0, posterior.dead):
            return "the evidence is nan, or not zero where a population is dead"
        scores = z_scores("evidence", ratio, torch.ones_like(ratio[:1]), cell.bias)
        spread = self.spread_plates(ratio[None])[0]
        for statistic, mean, exact in self.means(posterior):
            scores |= mean_scores(str(statistic), spread * mean, spread * exact, exact, cell.bias)
        return scores

    def chain(self, cell: Cell, kernel: Any, replicas: int) -> dict[str, float] | str:
        state = self.exact_state(kernel, replicas)
        for _ in range(cell.iterations):
            posterior, state = kernel.step(state)
        wrong = self.form(posterior, replicas)
        if wrong:
            return wrong
        scores: dict[str, float] = {}
        for statistic, mean, exact in self.means(posterior):
            scores |= mean_scores(str(statistic), mean, exact, exact, cell.bias)
        return scores

    def enumerated(self, cell: Cell) -> dict[str, float] | str:
        posterior = cell.build(self.model, 0, None).run()
        found, exact = float(posterior.log_evidence.exp()), self.answer.evidence[0]
        if not abs(found / exact - 1) < 1e-4:
            return f"evidence {found:.6g}, exactly {exact:.6g}"
        for statistic, mean, exact_mean in self.means(posterior):
            self.tests += 1
            if not abs(float(mean) - float(exact_mean)) < 1e-4:
                return f"P({statistic}) = {float(mean):.6g}, exactly {float(exact_mean):.6g}"
        return {}

    def search(self, cell: Cell) -> dict[str, float] | str:
        """Searches have no target: their weights are normalised, and they refuse to give an evidence."""
        posterior = cell.build(self.model, self.program.nesting, None).run()
        self.tests += 1
        if not torch.allclose(posterior.weights.sum(0), (~posterior.dead).double()) or (bool(posterior.dead.any()) and not self.kills):
            return "the weights do not add up to one, or to zero in a dead population"
        try:
            _ = posterior.log_evidence
        except ValueError:
            return {}
        return "gives an evidence"

    # exact starts -------------------------------------------------------------------------------------------------------------------

    def exact_state(self, kernel: Any, replicas: int) -> Trajectory:
        """Draws from the target of each of the kernel's states: ``[(K,) R, *plates]``."""
        tempered = hasattr(kernel, "betas")
        powers = kernel.betas if tempered else [1.0] * getattr(kernel, "num_references", 1)
        parts = [self.exact_draws(power, 0 if tempered else k, replicas) for k, power in enumerate(powers)]
        if len(powers) == 1:
            return Trajectory(parts[0])
        return Trajectory({site: torch.stack([part[site] for part in parts]) for site in parts[0]})

    def exact_draws(self, power: float, part: int, count: int) -> dict[str, Tensor]:
        """Draws from the posterior with a power of the likelihood; the same for all cells, others for another attempt."""
        blocks = self.draws.setdefault((self.attempt, power, part), [])
        while len(blocks) * BLOCK < count:  # seeded one by one: a cell alone starts from the draws that it has among others
            rng = random.Random(f"{self.seed}/draws/{self.attempt}/{power}/{part}/{len(blocks)}")
            drawn = self.oracle_of_power(power).posterior_draws(BLOCK, rng)
            blocks.append({site: stacked(self.program, site, drawn) for site in drawn[0]})
        return {site: torch.cat([block[site] for block in blocks])[:count] for site in blocks[0]}

    def oracle_of_power(self, power: float) -> Any:
        if power not in self.oracles:
            self.oracles[power] = oracle_of(self.program, power)
        return self.oracles[power]

    # statistics ---------------------------------------------------------------------------------------------------------------------

    def form(self, posterior: Any, replicas: int) -> str:
        """What is wrong with the shapes of weights and deterministic sites."""
        plates = [self.program.problems] if self.program.independent else []
        shape = (posterior.num_particles, replicas, *plates)
        if posterior.weights.shape != shape:
            return f"weights of shape {tuple(posterior.weights.shape)}, not {shape}"
        for s in self.program.statements if isinstance(self.program, Program) else ():
            if isinstance(s, Note) and s.site in posterior.sites and posterior.sites[s.site].dim() != 2 + self.program.nesting:
                return f"site {s.site!r} has shape {tuple(posterior.sites[s.site].shape)}, not that of {posterior.num_particles} particles"
        return ""

    def agrees_with_its_sites(self, posterior: Any) -> str:
        """What the model returned for a particle is what its sites say."""
        if isinstance(self.program, GaussianProgram) or not isinstance(posterior.value, dict):
            return ""
        for s in self.program.draws:
            if (
                not s.hidden
                and s.mask not in (FN_MASK, POUTINE_MASK)
                and bool((posterior.value[s.variable] != posterior.sites[s.site]).any())
            ):
                return f"the returned {s.variable} differs from site {s.site!r}"
        return ""

    def spread_plates(self, tensor: Tensor) -> Tensor:
        """``[N, R(, P)]`` with every level of plates."""
        if self.program.problems and not self.program.independent:
            tensor = tensor[..., None]
        return tensor[..., None] if isinstance(self.program, Program) and self.program.elements else tensor

    def means(self, posterior: Any) -> list[tuple[Statistic, Tensor, Tensor]]:
        """Each statistic with its weighted means ``[R, *plates]`` and the exact ones."""
        weights = self.spread_plates(posterior.weights)
        values = variables(self.program, posterior.sites)
        found = []
        for statistic, exact in self.answer.means.items():
            if any(name not in values for name, _ in statistic.events):
                continue
            compare: Callable[[Tensor, float], Tensor] = torch.gt if isinstance(self.program, GaussianProgram) else torch.eq
            holds = math.prod(compare(values[name], value).double() for name, value in statistic.events)
            assert isinstance(holds, Tensor)
            mean = (weights * holds).sum(0)
            wanted = torch.tensor(exact, dtype=torch.float64)  # [P, E]
            wanted = wanted if self.program.problems else wanted[0]
            wanted = wanted if isinstance(self.program, Program) and self.program.elements else wanted[..., 0]
            found.append((statistic, mean, wanted))
        return found
