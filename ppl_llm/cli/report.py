"""The outcome of a run, as a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .details import Details, details

if TYPE_CHECKING:
    from ..answers.voting import Answer
    from ..context import Context
    from ..inference import Decision, Equivalent, Explanation, ParticlePosterior
    from ..programs.models import ReasoningModel

_SHOWN = 8
"""Answers shown in the table; JSON has all."""
_ESS_SHOWN = 24
"""Steps, iterations or stages of which the effective sample size is shown; JSON has all."""
_BAR = 24


@dataclass(frozen=True)
class Solution:
    """One particle: its steps with the reward model's probability that each is right.

    :ivar list step_scores: ``None`` for a step without a score: one without text, or one that a reward of whole answers does not judge.
    :ivar float weight: its posterior weight.
    :ivar float score: aggregated score of the whole solution; ``None`` without a reward, and no ``step_scores`` either.
    :ivar str aggregation: how the scores of the steps were aggregated: ``last``, ``prod``, ``min``, ``max`` or ``mean``.
    """

    steps: list[str]
    step_scores: list[float | None]
    weight: float
    score: float | None
    aggregation: str


@dataclass(frozen=True)
class Report:
    """What ``solve`` tells about a posterior. Made by :meth:`of`.

    :ivar int cut: solutions that were cut for their length, by the bound on their tokens or the model's context; they are not ``finished``.
    :ivar Answer answer: ``None`` where there is none, or it abstains; ``considered`` is the one that it would have given.
    """

    problem: str
    partial: bool
    answer: Answer
    answers: list[tuple[Answer, float]]
    details: Details
    particles: int
    finished: int
    cut: int
    best: Solution
    cost: dict[str, float]
    audit: dict[str, float] | None
    settings: dict[str, Any]
    unanswered: int
    no_answer: float
    failure: str | None
    considered: Answer = None
    decision: Decision | None = None
    explanation: Explanation | None = None

    @classmethod
    def of(
        cls,
        model: ReasoningModel,
        posterior: ParticlePosterior,
        problem: str,
        settings: dict[str, Any],
        partial: bool,
        equivalent: Equivalent | None = None,
        failure: str | None = None,
        abstain: float | None = None,
        explain: bool = False,
    ) -> Report:
        """
        :param ReasoningModel model: that was run.
        :param ParticlePosterior posterior: of a single problem.
        :param bool partial: whether the run was interrupted.
        :param equivalent: when two answers are the same.
        :param str failure: why no solution was good enough.
        :param float abstain: probability below which there is no answer.
        :param bool explain: why this answer.
        """
        considered = answer = model.choose(posterior, equivalent)
        decision = None if abstain is None else posterior.decide(abstain=abstain, actions=[answer], equivalent=equivalent)
        if decision is not None and decision.abstained:
            answer = None
        answers = posterior.answers(equivalent)
        audit = posterior.audit
        return cls(
            problem=problem,
            partial=partial,
            answer=answer,
            answers=list(answers.probs.items()),
            details=details(posterior),
            particles=posterior.num_particles,
            finished=int(posterior.value.finished.sum()),
            cut=int((posterior.value.done & ~posterior.value.finished).sum()),
            best=solution_of(model, posterior.value, posterior.weights.tolist(), considered, equivalent),
            cost=dict(posterior.cost),
            audit=None if audit is None else asdict(audit),
            settings=settings,
            unanswered=sum(given is None for given in posterior.value.answers()),
            no_answer=answers.prob(None),
            failure=failure,
            considered=considered,
            decision=decision,
            explanation=posterior.explain(equivalent=equivalent) if explain else None,
        )

    @property
    def abstained(self) -> bool:
        """Whether no answer is given for want of probability."""
        return self.decision is not None and self.decision.abstained

    @property
    def reason(self) -> str:
        """Why there is no answer, where it abstains."""
        assert self.decision is not None
        what = "probability" if self.details.estimates else "share of the votes"
        if self.considered is None:
            return f"No answer: no solution gives one, and --abstain is {self.decision.utility:g}"
        best = f"the best one, {self.considered}, has {what} {self.decision.best:.3f}"
        return f"No answer: {best}, less than --abstain {self.decision.utility:g}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers are finite or ``None``."""
        values: dict[str, Any] = _finite(
            {
                "problem": self.problem,
                "partial": self.partial,
                "answer": self.answer,
                "answers": [{"answer": answer, "probability": probability} for answer, probability in self.answers],
                "log_evidence": self.details.log_evidence,
                "no_evidence": self.details.no_evidence,
                "unit": self.details.unit,
                "ess": self.details.ess,
                "resampled": self.details.resampled,
                **self.details.values,
                "particles": self.particles,
                "finished": self.finished,
                "cut": self.cut,
                "without_answer": self.unanswered,
                "probability_without_answer": self.no_answer,
                **({} if self.failure is None else {"failure": self.failure}),
                **({} if self.decision is None else {"abstained": self.abstained, "best_answer": self.considered}),
                **({} if self.explanation is None else {"explanation": self.explanation.as_dict()}),
                "best": {
                    "steps": self.best.steps,
                    "step_scores": self.best.step_scores,
                    "weight": self.best.weight,
                    "score": self.best.score,
                    "aggregation": self.best.aggregation,
                },
                "cost": self.cost,
                "audit": self.audit,
                "settings": self.settings,
            }
        )
        return values

    def print(self, console: Console) -> None:
        """For people."""
        told = self.details
        title = "Posterior over answers" if told.estimates else "Vote over answers"
        if self.partial:
            dead = self.failure is not None and "weight zero" in self.failure
            how = "interrupted" if self.failure is None else "no solution had a weight" if dead else "failed"
            units = told.unit if len(told.ess) == 1 else f"{told.unit}{'es' if told.unit == 'batch' else 's'}"
            title = f"Partial {title[0].lower()}{title[1:]}: {how} after {len(told.ess)} {units}"
        _heading(console, title, style="bold yellow" if self.partial else "bold")
        console.print(self._answers_table(bar="#" if console.options.ascii_only else "━"))
        if self.abstained:
            console.print(Text(plain(self.reason), style="bold yellow"))
        finished = f"{self.finished} of {self.particles} finished" + (f" ({self.cut} cut for their length)" if self.cut else "")
        resampled = f"resampled {sum(told.resampled)} of {len(told.resampled)} times"
        evidence = "no evidence" if told.log_evidence is None else f"log evidence {told.log_evidence:.3f}"
        console.print(Text(f"{evidence}, {finished}, {resampled}"))
        if self.failure is not None:
            console.print(Text(self.failure, style="yellow"))
        if self.unanswered:
            share = f"{self.unanswered} of {self.particles} solutions have no answer, {self.no_answer:.3f} of the probability"
            if self.unanswered == self.particles:
                share += ": ask for \\boxed{...} in the problem or with --system-prompt, or see --answer-fallback last-number"
            console.print(Text(share, style="yellow"))
        if told.estimates and (told.unit != "iteration" or max(told.ess, default=1.0) > 1):  # single states have an ESS of 1
            more = f" .. {len(told.ess) - _ESS_SHOWN} more" if len(told.ess) > _ESS_SHOWN else ""
            console.print(Text(f"ESS per {told.unit} " + " ".join(f"{ess:.1f}" for ess in told.ess[:_ESS_SHOWN]) + more, style="dim"))
        for line in [*told.lines, *([told.no_evidence] if told.no_evidence is not None else [])]:
            console.print(Text(line, style="dim"))
        best = self.best
        score = "" if best.score is None else f", {best.aggregation} score {best.score:.3f}"
        _heading(console, f"Best solution (weight {best.weight:.3f}{score})")
        console.print(steps_table(best))
        if self.explanation is not None:
            _heading(console, "Why this answer")
            for line in self.explanation.lines:
                console.print(Text(plain(line)))
        _heading(console, "Cost")
        console.print(Text(_cost_line(self.cost)))
        if self.audit is not None:
            compared = "{num_sites} sites and {num_leaves} values of the result replayed, error {error:.3g}".format(**self.audit)
            console.print(Text(f"audit passed: {compared}"))

    def _answers_table(self, bar: str) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name, justify in (("answer", "left"), ("probability", "right"), ("", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        answers = [(answer, probability) for answer, probability in self.answers if answer is not None]
        for answer, probability in answers[:_SHOWN]:
            style = "bold green" if answer == self.answer else ""
            table.add_row(
                Text(plain(str(answer)), style=style or "dim"),
                Text(f"{probability:.3f}", style=style),
                Text(bar * round(_BAR * probability), style=style or "dim"),
            )
        if len(answers) > _SHOWN:
            rest = answers[_SHOWN:]
            table.add_row(Text(f"{len(rest)} more", style="dim"), Text(f"{sum(p for _, p in rest):.3f}", style="dim"), "")
        return table


def steps_table(solution: Solution) -> Table:
    """The steps of a solution with their scores."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    if solution.score is None:
        table.add_column("step")
        for step in solution.steps:
            table.add_row(Text(plain(step).strip()))
        return table
    table.add_column("score", justify="right", vertical="top")
    table.add_column("step")
    for step, score in zip(solution.steps, solution.step_scores, strict=True):
        if score is None and not step.strip():
            continue
        style = "" if score is None else "green" if score >= 0.8 else "yellow" if score >= 0.5 else "red"
        table.add_row(Text("" if score is None else f"{score:.3f}", style=style), Text(plain(step).strip()))
    return table


def solution_of(
    model: ReasoningModel, context: Context, weights: list[float], answer: Answer, equivalent: Equivalent | None = None
) -> Solution:
    """The solution that stands for the chosen answer, see :meth:`ReasoningModel.choose_particle`, with the scores of its steps."""
    import torch

    from ..reward.base import scored_steps
    from ..stop_reason import StopReason

    n = model.choose_particle(context, weights, answer, equivalent)
    if model.prm is None:
        return Solution(context[n].steps, [], weights[n], None, model.aggregation)
    with torch.no_grad():
        log_odds, prefix = model.prm.step_log_odds(context).cpu(), model.prefix_scores(context).cpu()
    taken, real = (context.reasons != StopReason.FINISHED).cpu(), scored_steps(model.prm, context).cpu()
    if (judged := getattr(model.prm, "judged_steps", None)) is not None:
        real &= judged(context).cpu()
    of_steps = [float(z.sigmoid()) if own else None for z, own in zip(log_odds[n][taken[n]], real[n][taken[n]], strict=True)]
    return Solution(context[n].steps, of_steps, weights[n], float(prefix[n].sigmoid()), model.aggregation)


def _heading(console: Console, text: str, style: str = "bold") -> None:
    console.print()
    console.print(Text(text, style=style))


def plain(text: str) -> str:
    """Text without control characters: a language model must not drive the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def _cost_line(cost: dict[str, float]) -> str:
    seconds = cost.get("seconds", 0.0)
    work = [f"{value:,.0f} {name.replace('_', ' ')}" for name, value in cost.items() if not name.endswith("seconds")]
    parts = [f"{value:.1f} {name.replace('_', ' ')}" for name, value in cost.items() if name.endswith("_seconds")]
    return ", ".join([*work, f"{seconds:.1f} seconds"]) + (f" ({', '.join(parts)})" if parts else "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
