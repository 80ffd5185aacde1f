"""What ``ppl-llm demo`` shows: several problems as one batch, with the accuracy of four ways to answer them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..demo.problems import LEVELS, Problem, held_out
from ..methods import METHODS, Call
from .report import Solution, plain, solution_of, steps_table

if TYPE_CHECKING:
    from ..inference import ParticlePosterior
    from ..lm.base import LanguageModel
    from ..programs.models import ReasoningModel
    from ..reward.base import RewardModel

_BAR = 30
_NOISE = 0.05
"""Probability by chance from which a difference is called noise."""

PASS_AT_1, VOTE, IMPORTANCE, SMC = "one solution (pass@1)", "majority vote", "importance sampling", "SMC"


def parse_levels(text: str) -> list[int]:
    """Levels such as ``4,5,6``.

    :raises ValueError: for anything else than known levels.
    """
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--levels must be numbers separated by commas, such as 4,5,6, got {text!r}") from error
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        raise ValueError(f"--levels has no level {unknown[0]}; known: {', '.join(map(str, LEVELS))}")
    return sorted(set(levels))


def problems_of(levels: Sequence[int], number: int, seed: int) -> list[Problem]:
    """Held-out problems of these levels in turn."""
    drawn = held_out(len(LEVELS) * math.ceil(number / len(levels)), seed)
    return [problem for problem in drawn if problem.level in levels][:number]


def sign_test(more: int, fewer: int) -> float:
    """Probability of a split at least as uneven if both sides were equally likely: the exact two-sided sign test."""
    n = more + fewer
    tail = sum(math.comb(n, k) for k in range(min(more, fewer) + 1)) / 2**n
    return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Row:
    """One way to answer.

    :ivar list right: per problem, the share of right answers: 0 or 1 where one answer is given.
    :ivar int tokens: sampled for all problems.
    :ivar bool partial: whether its run was interrupted.
    """

    name: str
    right: list[float]
    tokens: int
    partial: bool


@dataclass(frozen=True)
class Shown:
    """A problem with a solution to read."""

    problem: Problem
    answers: dict[str, object]
    solution: Solution


class Comparison:
    """Runs importance sampling and SMC on all problems at once.

    :param list problems: one batch.
    :param int particles: solutions for each.
    :param Console err: for the progress, where it is a terminal.
    """

    def __init__(self, problems: Sequence[Problem], particles: int, seed: int, err: Console) -> None:
        self.problems, self.particles, self.seed, self.err = list(problems), particles, seed, err
        self.rows: list[Row] = []
        self.shown: Shown | None = None
        self._answers: dict[str, list[object]] = {}

    def run(self, lm: LanguageModel, prm: RewardModel) -> bool:
        """
        :returns: whether it came to the end; ``False`` after Ctrl-C, with what was there by then.
        """
        from ..answers.voting import majority
        from ..programs.models import reasoning

        model = reasoning(lm, prm)
        posterior, partial = self._run(model, "importance")
        if posterior is not None:
            columns = list(zip(*posterior.value.answers(), strict=True))
            shares = zip(self.problems, columns, strict=True)
            right = [sum(answer == problem.answer for answer in column) / len(column) for problem, column in shares]
            self._add(PASS_AT_1, right, posterior, partial)
            self._add_answers(VOTE, [majority(column) for column in columns], posterior, partial)
            self._add_answers(IMPORTANCE, model.choose(posterior), posterior, partial)
        if partial:
            return False
        posterior, partial = self._run(model, "smc")
        if posterior is not None:
            self._add_answers(SMC, model.choose(posterior), posterior, partial)
            if not partial:
                self.shown = self._solution(model, posterior)
        return not partial

    def _run(self, model: ReasoningModel, method: str) -> tuple[ParticlePosterior | None, bool]:
        """The posterior of all problems, and whether it is a partial one."""
        import pyro

        total = self.particles * len(self.problems)
        status = self.err.status(f"{method}: {total} solutions of {len(self.problems)} problems") if self.err.is_terminal else None
        steps = 0

        def watch(posterior: ParticlePosterior) -> None:
            nonlocal steps
            steps += 1
            if status is not None:
                status.update(f"{method}, step {steps}: {int(posterior.value.finished.sum())} of {total} solutions finished")

        run = METHODS[method].start(model, {"particles": self.particles}, Call(watch, max_plate_nesting=1))
        pyro.set_rng_seed(self.seed)
        try:
            if status is not None:
                status.start()
            return run([problem.text for problem in self.problems]), False
        except KeyboardInterrupt as interrupt:
            return getattr(interrupt, "partial_posterior", None), True
        finally:
            if status is not None:
                status.stop()

    def _add(self, name: str, right: list[float], posterior: ParticlePosterior, partial: bool) -> None:
        self.rows.append(Row(name, right, int(posterior.cost.get("tokens_sampled", 0)), partial))

    def _add_answers(self, name: str, answers: list[object], posterior: ParticlePosterior, partial: bool) -> None:
        self._answers[name] = answers
        self._add(name, [float(a == p.answer) for a, p in zip(answers, self.problems, strict=True)], posterior, partial)

    def _solution(self, model: ReasoningModel, posterior: ParticlePosterior) -> Shown:
        """One that SMC solves, if there is any; of those one that the vote gets wrong, of those one of the highest level."""

        def worth(i: int) -> tuple[bool, bool, int]:
            gold = self.problems[i].answer
            return self._answers[SMC][i] == gold, self._answers[VOTE][i] != gold, self.problems[i].level

        i = max(range(len(self.problems)), key=worth)
        context, weights = posterior.value.select_plate(1, i), posterior.weights[:, i].tolist()
        solution = solution_of(model, context, weights, self._answers[SMC][i])
        return Shown(self.problems[i], {name: answers[i] for name, answers in self._answers.items()}, solution)

    def print(self, out: Console) -> None:
        """The table, what it shows and what it does not, and the solution."""
        levels = sorted({problem.level for problem in self.problems})
        out.print(
            Text(
                f"{len(self.problems)} held-out problems of level {', '.join(map(str, levels))} as one batch, {self.particles} solutions "
                f"of each, seed {self.seed}",
                style="bold",
            ),
            soft_wrap=True,
        )
        out.print(self._table(out, levels))
        for line in self._caveats():
            out.print(Text(line), soft_wrap=True)
        if self.shown is not None:
            self._print_solution(out, self.shown)
        if self.rows:
            hardest = max(self.problems, key=lambda problem: problem.level)
            out.print(
                Text(
                    f"\nNext: ppl-llm solve '{hardest.text}' --particles {4 * self.particles}\n"
                    f"      ppl-llm demo --seed {self.seed + 1}          other problems\n"
                    "      ppl-llm demo --prm demo-weak   a weaker reward model",
                    style="dim",
                ),
                soft_wrap=True,
            )

    def _table(self, out: Console, levels: Sequence[int]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("", "right", "share", ""):
            table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
        for level in levels:
            table.add_column(f"level {level}", justify="right", no_wrap=True)
        longest = max(len(self._label(row)) for row in self.rows)
        width = max(_BAR // 3, min(_BAR, out.width - longest - 20 - 9 * len(levels)))
        bar = "#" if out.options.ascii_only else "━"
        best = max((sum(row.right) for row in self.rows), default=0.0)
        for row in self.rows:
            style = "green" if sum(row.right) == best else ""
            shares = [[r for r, p in zip(row.right, self.problems, strict=True) if p.level == level] for level in levels]
            share = sum(row.right) / len(row.right)
            table.add_row(
                self._label(row),
                f"{sum(row.right):.1f}" if row.name == PASS_AT_1 else f"{sum(row.right):.0f}",
                f"{share:.0%}",
                Text(bar * round(width * share), style=style or "dim"),
                *(f"{sum(each) / len(each):.0%}" for each in shares),
            )
        return table

    @staticmethod
    def _label(row: Row) -> str:
        return row.name + (" (interrupted)" if row.partial else "")

    def _caveats(self) -> list[str]:
        """How much the difference between the methods means."""
        by_name = {row.name: row for row in self.rows if not row.partial}
        lines = []
        if {PASS_AT_1, VOTE, IMPORTANCE} <= by_name.keys():
            tokens = f"{by_name[VOTE].tokens:,}" + (f" and {by_name[SMC].tokens:,}" if SMC in by_name else "")
            lines.append(f"The first three rows judge the same independent solutions; SMC resamples its own as it goes ({tokens} tokens).")
        for other in (VOTE, IMPORTANCE):
            if SMC in by_name and other in by_name:
                pairs = list(zip(by_name[SMC].right, by_name[other].right, strict=True))
                more, fewer = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
                chance = sign_test(more, fewer)
                verdict = "within the noise of so few problems" if chance > _NOISE else "more than chance explains"
                if more or fewer:
                    split = f"SMC alone solves {more}, {other} alone {fewer}"
                    lines.append(f"{split}: {verdict} (sign test, p = {chance:.2g}).")
                else:
                    lines.append(f"SMC and {other} solve the same problems.")
        if lines:
            lines.append(
                "This is one seed and two small models made for such problems; the study in the documentation measures the methods."
            )
        return lines

    def _print_solution(self, out: Console, shown: Shown) -> None:
        answers = ", ".join(f"{name} {'none' if answer is None else plain(str(answer))}" for name, answer in shown.answers.items())
        solved = "solved by SMC" if shown.answers[SMC] == shown.problem.answer else "which SMC does not solve"
        out.print()
        out.print(Text(f"A problem of level {shown.problem.level}, {solved} (right: {shown.problem.answer}; {answers})", style="bold"))
        out.print(Text(shown.problem.text), soft_wrap=True)
        out.print(steps_table(shown.solution))
