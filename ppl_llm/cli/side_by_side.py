"""Importance sampling and SMC on the same problems, next to each other."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..demo.problems import LEVELS, Problem, held_out
from .progress import Progress
from .report import plain
from .run import sweep
from .settings import Settings

if TYPE_CHECKING:
    from ..answers.voting import Answer
    from ..inference import ParticlePosterior
    from ..lm.base import LanguageModel
    from ..programs.models import ReasoningModel
    from ..reward.base import RewardModel

_OTHER_COLUMNS, _SHORTEST = 80, 16
"""Width of all columns but the problem's, and the least that is worth showing of that one."""


def parse_levels(text: str) -> list[int]:
    """Levels such as ``1,2,5``.

    :raises ValueError: for anything else than known levels.
    """
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--levels must be numbers separated by commas, such as 1,2,3, got {text!r}") from error
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        raise ValueError(f"--levels has no level {unknown[0]}; known: {', '.join(map(str, LEVELS))}")
    return levels


@dataclass(frozen=True)
class Attempt:
    """What one method made of a problem.

    :ivar Answer answer: chosen from the weighted particles.
    :ivar float probability: posterior probability of that answer.
    :ivar float ess: at the last barrier.
    :ivar Answer majority: the answer without weights, self-consistency.
    """

    answer: Answer
    probability: float
    ess: float
    majority: Answer
    tokens: int
    seconds: float

    @classmethod
    def of(cls, model: ReasoningModel, posterior: ParticlePosterior) -> Attempt:
        from ..answers.voting import majority

        answer = model.choose(posterior)
        cost = posterior.cost
        return cls(
            answer=answer,
            probability=posterior.answers().prob(answer),
            ess=float(posterior.ess[-1]),
            majority=majority(posterior.value.answers()),
            tokens=int(cost.get("tokens_sampled", 0)),
            seconds=cost["seconds"],
        )


class SideBySide:
    """Solves a problem of each level by both methods.

    :param Settings settings: of the runs; the method is replaced.
    :param Console out: for the table.
    :param Console err: for the progress.
    """

    def __init__(self, settings: Settings, out: Console, err: Console) -> None:
        self.settings, self.out, self.err = settings, out, err
        self.particles: int = settings.options["particles"]
        self.rows: list[tuple[Problem, Attempt, Attempt]] = []

    def run(self, lm: LanguageModel, prm: RewardModel, levels: list[int]) -> bool:
        """
        :returns: whether it came to the end; ``False`` after Ctrl-C, with the rows that were complete.
        """
        problems = {problem.level: problem for problem in held_out(len(LEVELS), self.settings.seed)}
        for level in levels:
            attempts = []
            for method in ("importance", "smc"):
                progress = Progress(self.err, f"level {level}, {method}: {problems[level].text}")
                outcome = sweep(replace(self.settings, method=method), lm, prm, problems[level].text, progress)
                if outcome.partial or outcome.posterior is None:
                    return False
                attempts.append(Attempt.of(outcome.model, outcome.posterior))
            self.rows.append((problems[level], attempts[0], attempts[1]))
        return True

    def print(self) -> None:
        """The table and the totals."""
        self.out.print(self._table())
        if self.rows:
            self.out.print(Text(self._totals()))
            self.out.print(Text(self._next(), style="dim"), soft_wrap=True)

    def _table(self) -> Table:
        title = f"{self.particles} particles; IS: importance sampling, SMC: particle filter"
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        room = self.out.width - _OTHER_COLUMNS
        table.add_column("level", justify="right")
        if room >= _SHORTEST:
            table.add_column("problem", no_wrap=True)
        for name in ("right", "vote", "IS", "SMC", "P(answer)\nIS / SMC", "ESS\nIS / SMC", "tokens\nIS / SMC"):
            table.add_column(name, justify="right", no_wrap=True)
        for problem, importance, smc in self.rows:
            table.add_row(
                str(problem.level),
                *([Text(textwrap.shorten(problem.text, room, placeholder=" ..."))] if room >= _SHORTEST else []),
                Text(problem.answer, style="bold"),
                *(self._marked(answer, problem) for answer in (importance.majority, importance.answer, smc.answer)),
                f"{importance.probability:.2f} / {smc.probability:.2f}",
                f"{importance.ess:.1f} / {smc.ess:.1f}",
                f"{importance.tokens:,} / {smc.tokens:,}",
            )
        return table

    def _marked(self, answer: Answer, problem: Problem) -> Text:
        right, wrong = ("+", " ") if self.out.options.ascii_only else ("✓", "✗")
        if answer is None:
            return Text("none", style="dim")
        return Text(f"{answer} {right}", style="green") if answer == problem.answer else Text(f"{plain(str(answer))} {wrong}", style="red")

    def _totals(self) -> str:
        def right(answers: list[Answer]) -> str:
            hits = [answer == problem.answer for answer, (problem, _, _) in zip(answers, self.rows, strict=True)]
            return f"{sum(hits)} of {len(hits)}"

        vote = right([importance.majority for _, importance, _ in self.rows])
        weighted = right([importance.answer for _, importance, _ in self.rows])
        filtered = right([smc.answer for _, _, smc in self.rows])
        tokens = sum(importance.tokens + smc.tokens for _, importance, smc in self.rows)
        seconds = sum(importance.seconds + smc.seconds for _, importance, smc in self.rows)
        return (
            f"right: {vote} by vote (self-consistency), {weighted} by importance sampling (weighted best-of-N), {filtered} by SMC. "
            f"{tokens:,} tokens in {seconds:.1f} s."
        )

    def _next(self) -> str:
        hardest = max((problem for problem, _, _ in self.rows), key=lambda problem: problem.level)
        return (
            f"Next: ppl-llm solve '{hardest.text}' --particles {4 * self.particles}\n"
            f"      ppl-llm demo --seed {self.settings.seed + 1}          other problems\n"
            "      ppl-llm demo --prm demo-weak   a weaker reward model"
        )
