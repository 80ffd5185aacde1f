"""A problem's run: the program that a request stands for, and what it leaves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .asked import Asked
from .catalogue import Choice
from .errors import ApiError, DeadlinePassed, bad_value
from .settled import SettledText, particles_of, past_drafts

if TYPE_CHECKING:
    from ..context import Context
    from ..inference import ParticlePosterior
    from ..lm.base import LanguageModel
    from ..methods.base import Run
    from ..programs.models import ReasoningModel
    from ..reward.base import RewardModel

_ANSWERS = 100
"""Answers that a reply tells of."""
_STEP_CHARACTERS = 200
"""Of each particle's step that progress tells of."""

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Served:
    """What a gateway serves.

    :ivar str name: of the language model, for clients.
    :ivar LanguageModel lm: writes.
    :ivar RewardModel prm: scores; ``None`` for none.
    :ivar dict options: keywords of :func:`ppl_llm.reasoning` that requests do not change, and defaults of those that they may.
    :ivar equivalent: when two answers are the same; ``None`` for letter by letter.
    """

    name: str
    lm: LanguageModel
    prm: RewardModel | None
    options: dict[str, Any] = field(default_factory=dict)
    equivalent: Any = None


class Solution(NamedTuple):
    """One answer.

    :ivar str text: of the message.
    :ivar str finish: ``stop`` or ``length``.
    :ivar int tokens: that it has.
    :ivar str answer: found in the text.
    :ivar float weight: of the particle.
    """

    text: str
    finish: str
    tokens: int
    answer: str | None
    weight: float


class Outcome(NamedTuple):
    """What a run leaves.

    :ivar list solutions: ``n`` of them.
    :ivar dict reasons: for the field ``ppl`` of the reply.
    :ivar str page: for the viewer, as HTML; ``None`` for a run too large to draw.
    """

    solutions: list[Solution]
    prompt_tokens: int
    reasons: dict[str, Any]
    page: str | None


class Progress(NamedTuple):
    """A step of a run that is under way.

    :ivar str settled: text that is certain now.
    :ivar dict told: what has happened.
    """

    settled: str
    told: dict[str, Any]


class Solver:
    """Makes programs of requests.

    :param Served served: the models.
    :param bool pages: whether runs are drawn.
    """

    def __init__(self, served: Served, pages: bool = True) -> None:
        self.served, self._pages = served, pages

    def model(self, choice: Choice, options: dict[str, Any], *, loaded: bool = True) -> ReasoningModel:
        """The Pyro model of a request.

        :param bool loaded: with the served language model, not only to see whether the options go together, and with the reward.
        :raises ValueError: for options that do not.
        """
        from ..programs.models import build_reasoning

        served = self.served
        lm: Any = served.lm if loaded else None
        prm: Any = served.prm if choice.method.scored else None
        return choice.chosen.adapted(build_reasoning(lm, prm, **{**served.options, **options}))

    def check(self, asked: Asked) -> None:
        """Everything that can be known before a run.

        :raises ApiError: for options that do not go together, naming the field.
        """
        try:
            model = self.model(asked.choice, asked.options, loaded=False)
            asked.choice.method.check_lm(self.served.lm)
            asked.choice.method.start(_in_turns(asked, asked.problems[0], model), asked.choice.options)
        except ValueError as error:
            raise bad_value(_blamed(str(error), asked.choice), str(error)) from error

    def works(self, choice: Choice) -> bool:
        """Whether a method can be run at all."""
        try:
            choice.method.check_lm(self.served.lm)
            choice.method.start(self.model(choice, {}, loaded=False), choice.options)
        except ValueError:
            return False
        return True

    def program(self, asked: Asked, problem: Any, seed: int, tell: Tell) -> Callable[[], Outcome]:
        """A function without arguments that runs a method on a problem.

        :param tell: called with each :class:`Progress`, in the program's thread.
        """
        return functools.partial(self._solve, asked, problem, seed, tell)

    def _solve(self, asked: Asked, problem: Any, seed: int, tell: Tell) -> Outcome:
        options = dict(asked.options)
        if asked.constraint is not None:
            options.setdefault("answer_fallback", "text")
        model = _in_turns(asked, problem, self.model(asked.choice, options))
        try:
            prompt_tokens = int(model.lm.start(problem).lengths)
        except ValueError as error:
            field_name = "messages" if asked.chat else "prompt"
            code = "context_length_exceeded" if "no room" in str(error) else "invalid_value"
            raise ApiError(400, str(error), param=field_name, code=code) from None
        run = self._run(asked, model, _Watch(asked, tell) if asked.stream else None)
        stopped = None
        try:
            posterior = run(problem)
        except DeadlinePassed as passed:
            partial: ParticlePosterior | None = getattr(passed, "partial_posterior", None)
            if partial is None or not past_drafts(asked.rounds, partial.sites):  # a draft is no answer
                raise
            posterior, stopped = partial, "deadline"
        solutions = self._solutions(asked, model, posterior)
        return Outcome(solutions, prompt_tokens, self._reasons(asked, model, posterior, seed, stopped), self._page(asked, posterior))

    def _run(self, asked: Asked, model: ReasoningModel, callback: Any) -> Run:
        from ..methods import Call

        proposals = None
        if asked.constraint is not None:
            from ..methods.base import at_power
            from ..programs.step_proposal import StepProposal

            cool = at_power(model)
            proposals = StepProposal(constraint=asked.constraint, temperature=None if cool is None else cool.temperature)
        return asked.choice.method.start(
            model, asked.choice.options, Call(callback, proposals=proposals, equivalent=self.served.equivalent)
        )

    def _solutions(self, asked: Asked, model: ReasoningModel, posterior: ParticlePosterior) -> list[Solution]:
        """The solution that the method chooses, or several drawn from the posterior."""
        context, weights = posterior.value, posterior.weights.cpu()
        if asked.n == 1:
            answer = model.choose(posterior, self.served.equivalent)
            chosen = [model.choose_particle(context, weights.tolist(), answer, self.served.equivalent)]
        else:
            import torch

            alive = weights if float(weights.sum()) > 0 else torch.ones_like(weights)
            chosen = torch.multinomial(alive, asked.n, replacement=True).tolist()
        return [_solution(context[n], float(weights[n])) for n in chosen]

    def _reasons(self, asked: Asked, model: ReasoningModel, posterior: ParticlePosterior, seed: int, stopped: str | None) -> dict[str, Any]:
        answers = list(posterior.answers(self.served.equivalent).probs.items())[:_ANSWERS]
        settings = asked.choice.method.settled(model, asked.choice.options)
        told = {
            **posterior.diagnostics(),
            "method": asked.choice.method.name,
            "preset": model.preset.name,
            "power": model.power,
            "options": settings,
            "seed": seed,
            "answer": model.choose(posterior, self.served.equivalent),
            "answers": [{"answer": answer, "probability": probability} for answer, probability in answers],
            "estimates_posterior": posterior.estimates_posterior,
            "unit": posterior.unit,
            "cost": dict(posterior.cost),
            "stopped": stopped,
        }
        return {name: _plain(value) for name, value in told.items()}

    def _page(self, asked: Asked, posterior: ParticlePosterior) -> str | None:
        if not self._pages:
            return None
        from ..inference.viewer.page import page

        try:
            return page(posterior, title=f"{self.served.name}, {asked.choice.method.name}", equivalent=self.served.equivalent)
        except ValueError:  # too many particles and steps
            return None


class _Watch:
    """The callback of a run that is streamed."""

    def __init__(self, asked: Asked, tell: Tell) -> None:
        self._asked, self._tell, self._count = asked, tell, 0
        choice = asked.choice
        self._unit = choice.method.unit_under(choice.options)
        self._settled = SettledText(asked.options.get("final_stop", ())) if choice.method.settles_under(choice.options) else None

    def __call__(self, posterior: ParticlePosterior) -> None:
        self._count += 1
        context: Context = posterior.value
        settled = ""
        if self._settled and past_drafts(self._asked.rounds, posterior.sites):
            settled = self._settled.advance(particles_of(context))
        told: dict[str, Any] = {
            self._unit: self._count,
            "particles": posterior.num_particles,
            "finished": int(context.finished.sum()),
        }
        if self._asked.details:
            told |= self._details(posterior)
        self._tell(Progress(settled, {name: _plain(value) for name, value in told.items()}))

    def _details(self, posterior: ParticlePosterior) -> dict[str, Any]:
        """To draw the run from: parents, weights and steps of the particles."""
        context: Context = posterior.value
        answers = list(posterior.answers().probs.items())[:_ANSWERS]
        told: dict[str, Any] = {
            "weights": posterior.weights.tolist(),
            "done": context.done.tolist(),
            "answers": [[answer, probability] for answer, probability in answers],
        }
        records = posterior.particles.records
        if records and self._unit == "step":
            told["parents"] = records[-1].ancestors[posterior.particles.public].tolist()
            told["ess"] = float(records[-1].ess[posterior.particles.public])
            told["resampled"] = bool(records[-1].resampled.any())
            told["found"] = context.answers()
            told["steps"] = [(steps[-1] if steps else "")[:_STEP_CHARACTERS] for steps in context.steps]
        return told


def _in_turns(asked: Asked, problem: Any, model: ReasoningModel) -> ReasoningModel:
    """The model that writes as often as was asked for, each time in the next turn of the whole conversation."""
    if asked.rounds == 1:
        return model
    from ..programs.revision import ask_again, revise

    return revise(model, asked.rounds, lambda _, draft: ask_again(problem, draft))


def _solution(context: Context, weight: float) -> Solution:
    """:param Context context: of one particle."""
    from ..stop_reason import StopReason

    ended = bool(((context.reasons == StopReason.END_OF_TEXT) | (context.reasons == StopReason.PATTERN)).any())
    tokens = int(context.lengths - context.prompt_lengths)
    return Solution(context.text, "stop" if ended else "length", tokens, context.answers(), weight)


def _blamed(message: str, choice: Choice) -> str:
    """The field that a message of the library is about; its first word is the parameter."""
    word = message.split(" ", 1)[0].strip("'\"`:,")
    fields = {"max_tokens_completion": "max_tokens", "final_stop": "stop", "max_steps": "ppl.max_steps", "top_k": "ppl.top_k"}
    options = {name: f"ppl.{o.name}" for o in choice.method.options for name in (o.name, o.parameter) if name}
    return {**fields, "temperature": "temperature", "top_p": "top_p", **options}.get(word, "ppl")


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
