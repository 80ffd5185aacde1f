"""A problem's run: the program that a request stands for, and what it leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .asked import Asked
from .catalogue import Choice
from .errors import ApiError, DeadlinePassed, bad_value
from .progress import ANSWERS, Tell, Watch, plain
from .settled import past_drafts

if TYPE_CHECKING:
    from ..context import Context
    from ..inference import ParticlePosterior
    from ..lm.base import LanguageModel
    from ..methods.base import Run
    from ..programs.models import ReasoningModel
    from ..reward.base import RewardModel


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
        from ..context import Context
        from ..inference import SMCFailed
        from ..inference.cost import CostMeter

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
        run = self._run(asked, model, Watch(asked, tell) if asked.stream else None)
        stopped = None
        try:
            with CostMeter() as meter:
                posterior = run(problem)
        except DeadlinePassed as passed:
            partial: ParticlePosterior | None = getattr(passed, "partial_posterior", None)
            if partial is None or not past_drafts(asked.rounds, partial.sites):  # a draft is no answer
                raise
            posterior, stopped = partial, "deadline"
        except SMCFailed as failed:
            if not isinstance(failed.value, Context) or not _all_cut(failed.value, model) or asked.rounds > 1:
                raise
            return self._cut(asked, model, failed.value, prompt_tokens, seed, meter.totals)
        if not float(posterior.weights.sum()) and _all_cut(posterior.value, model):
            stopped = "length"
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

    def _cut(
        self, asked: Asked, model: ReasoningModel, context: Context, prompt_tokens: int, seed: int, cost: Mapping[str, float]
    ) -> Outcome:
        """Some of the solutions where all were cut before their ends, which rewards of whole answers give no weight."""
        import torch

        total = context.lengths.numel()
        some = context.flat(torch.arange(asked.n) % total)
        solutions = [_solution(some[number], 0.0) for number in range(asked.n)]
        told = self._settings(asked, model, seed) | {
            "num_particles": total,
            "answer": None,
            "answers": [],
            "estimates_posterior": False,
            "cost": dict(cost),
            "stopped": "length",
        }
        return Outcome(solutions, prompt_tokens, {name: plain(value) for name, value in told.items()}, None)

    def _settings(self, asked: Asked, model: ReasoningModel, seed: int) -> dict[str, Any]:
        return {
            "method": asked.choice.method.name,
            "preset": model.preset.name,
            "power": model.power,
            "options": asked.choice.method.settled(model, asked.choice.options),
            "seed": seed,
        }

    def _reasons(self, asked: Asked, model: ReasoningModel, posterior: ParticlePosterior, seed: int, stopped: str | None) -> dict[str, Any]:
        answers = list(posterior.answers(self.served.equivalent).probs.items())[:ANSWERS]
        told = {
            **posterior.diagnostics(),
            **self._settings(asked, model, seed),
            "answer": model.choose(posterior, self.served.equivalent),
            "answers": [{"answer": answer, "probability": probability} for answer, probability in answers],
            "estimates_posterior": posterior.estimates_posterior,
            "unit": posterior.unit,
            "cost": dict(posterior.cost),
            "stopped": stopped,
        }
        return {name: plain(value) for name, value in told.items()}

    def _page(self, asked: Asked, posterior: ParticlePosterior) -> str | None:
        if not self._pages:
            return None
        from ..inference.viewer.page import page

        try:
            return page(posterior, title=f"{self.served.name}, {asked.choice.method.name}", equivalent=self.served.equivalent)
        except ValueError:  # too many particles and steps
            return None


def _in_turns(asked: Asked, problem: Any, model: ReasoningModel) -> ReasoningModel:
    """The model that writes as often as was asked for, each time in the next turn of the whole conversation."""
    if asked.rounds == 1:
        return model
    from ..programs.revision import ask_again, revise

    return revise(model, asked.rounds, lambda _, draft: ask_again(problem, draft))


def _all_cut(context: Context, model: ReasoningModel) -> bool:
    """Whether every solution ends where it may be no longer, and not by itself."""
    if bool(context.finished.any()):
        return False
    return bool(context.done.all()) or context.num_steps >= model.max_steps


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
