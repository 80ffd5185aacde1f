"""Ready models: step-by-step reasoning under the targets that people use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..answers.extraction import FALLBACKS, answer_forms
from ..constraints.base import Constraint
from ..context import DEFAULT_STOP, Context
from ..context_cache import label_of
from ..distributions import LLMStep, RewardChoices, StepReward
from ..inference import barrier
from ..inference.handlers.power_messenger import PowerMessenger, bridge_powers
from ..inference.util.checked import checked, describe
from ..inference.util.safe_file import is_plain
from ..inference.util.validation import check_count, check_optional_count, unknown_name
from ..lm.base import LanguageModel, StepOptions, step_limits
from ..reward.base import Certainty, RewardModel, no_odds, prepare, waits_for_the_end
from ..thinking import WAIT, Thinking
from .chosen_answer import ChoosesAnswer
from .presets import Preset, get_preset
from .thinking import thinking_of, with_thinking


class ReasoningModel(ChoosesAnswer):
    """The Pyro model of a problem solved step by step; call it, or pass it to any inference algorithm. :func:`reasoning` makes it."""

    def __init__(
        self,
        lm: LanguageModel,
        prm: RewardModel | None,
        preset: Preset,
        max_steps: int,
        options: StepOptions,
        aggregation: str,
        score_temperature: float,
        finish: str | None,
        early_exit: bool,
        score: str = "log_prob",
        max_tokens_completion: int | None = None,
        answer_fallback: str | None = None,
        power: float = 1.0,
        bridge: int | tuple[float, ...] | None = None,
        every: str | None = None,
        final_stop: tuple[str, ...] = (),
        thinking: Thinking | None = None,
        confidence: Certainty | None = None,
    ) -> None:
        self.thinking, self.confidence = thinking, confidence
        self.power, self.bridge, self.every = power, bridge, every
        self.max_tokens_completion, self.answer_fallback, self.final_stop = max_tokens_completion, answer_fallback, final_stop
        self.lm, self.prm, self.preset, self.max_steps, self.options = lm, prm, preset, max_steps, options
        self.aggregation, self.score_temperature, self.finish = aggregation, score_temperature, finish
        self.early_exit, self.score = early_exit, score

    @property
    def settings(self) -> dict[str, Any]:
        """What the distribution of the model depends on, as plain values; a run that is resumed must have the same."""
        kind = {name: getattr(self.preset, name) for name in ("potential", "finished", "last_factor")}
        thinking = {} if self.thinking is None else asdict(self.thinking)
        given = {**kind, **vars(self.options), **vars(self), **thinking, "lm": label_of(self.lm), "prm": label_of(self.prm)}
        return {name: value for name, value in given.items() if is_plain(value)}

    def __call__(self, problem: Any) -> Context:
        """
        :param problem: what ``lm.start`` takes. A list of problems is a plate ``problems``: run it with ``max_plate_nesting=1``.
        """
        forms = answer_forms(self.answer_fallback)
        limits: dict[str, Any] = {"max_completion": self.max_tokens_completion, "final_stop": self.final_stop, "thinking": self.thinking}
        context = replace(self.lm.start(problem), answer_forms=forms, **limits)
        if self.prm is not None:
            prepare(self.prm, context)
        if self.confidence is not None:
            self.confidence.prepare(context)
        powers = bridge_powers(self.power, self.bridge)
        powered = PowerMessenger(self.power, powers) if self.power != 1 or any(each != 1 for each in powers) else nullcontext()
        with powered, pyro.plate("problems", len(context), dim=-1) if context.batch_shape else nullcontext():
            return self._solve(context)

    def _solve(self, ctx: Context) -> Context:
        for t in range(self.max_steps):
            ctx = barrier(self.step(ctx, t))
            if self.early_exit and ctx.done.all():
                break
        return ctx

    def step(self, ctx: Context, t: int) -> Context:
        """Sites ``step_t`` and ``accept_t``: the context with one more step."""
        ctx = self.written(ctx, f"step_{t}")
        if self.prm is not None:
            accepted = torch.tensor(1.0, device=ctx.tokens.device)
            pyro.sample(f"accept_{t}", self._factor(ctx, last_step=t + 1 == self.max_steps), obs=accepted)
        return ctx

    def written(self, ctx: Context, name: str) -> Context:
        """The context with the step of site ``name``."""
        o = self.options
        step = pyro.sample(name, LLMStep(ctx, o.stop, o.max_tokens, o.temperature, o.top_p, o.top_k, constraint=o.constraint))
        after = ctx.extend(step, stop=o.stop, finish=self.finish)
        if self.confidence is not None:
            self.confidence.note(after)
        return after

    def _factor(self, ctx: Context, last_step: bool) -> Any:
        preset = self.preset
        reward = StepReward(
            self._reward,
            ctx,
            preset.potential,
            temperature=self.score_temperature,
            aggregation=self.aggregation,
            finished=preset.finished,
            score=self.score,
            last_step=last_step,
        )
        if preset.finished == "neutral":
            return reward
        # The steps of a population end with its last particle: a statement about all particles, which no per-particle model can make.
        if preset.last_factor:
            in_play = _population(ctx, ctx.advanced.any)
        else:
            in_play = _population(ctx, (~ctx.done).any) & torch.tensor(not last_step, device=ctx.done.device)
        return reward.mask(in_play.expand(ctx.batch_shape))


def _population(ctx: Context, any_particle: Callable[..., Tensor]) -> Tensor:
    """``any`` over the particles, for each problem; a context without a particle dimension is its own population."""
    return any_particle(0, keepdim=True) if ctx.batch_shape else any_particle()


@checked
def reasoning(
    lm: LanguageModel,
    prm: RewardModel | None = None,
    preset: str | Preset = "exact",
    *,
    power: float = 1.0,
    bridge: int | Sequence[float] | None = None,
    max_steps: int = 40,
    stop: str | tuple[str, ...] = DEFAULT_STOP,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    aggregation: str | None = None,
    score_temperature: float = 1.0,
    potential: str | None = None,
    score: str = "log_prob",
    finish: str | None = None,
    early_exit: bool = True,
    tokens_per_step: int | None = None,
    constraint: Constraint | None = None,
    max_tokens_completion: int | None = None,
    answer_fallback: str | None = None,
    every: str | None = None,
    final_stop: tuple[str, ...] = (),
    waits: int = 0,
    wait: str = WAIT,
    close: str | None = None,
    max_thinking: int | None = None,
    confidence: Certainty | None = None,
) -> ReasoningModel:
    """Reasoning step by step: each step a latent site ``step_t``, each score an observed factor ``accept_t``, then a barrier.

    Example::

        model = reasoning(lm, prm, preset="exact")
        posterior = SMC(model, num_particles=16, **model.preset.smc).run("Start with 3. ...")
        model.choose(posterior), posterior.answers(), posterior.log_evidence

    :param LanguageModel lm: writes the steps.
    :param RewardModel prm: scores them; with ``None`` there are no sites ``accept_t``, and the target is p(x), or p(x)^power.
    :param preset: ``exact``, ``twisted``, ``as_paper``, ``its_hub``, ``entropic``, or a :class:`Preset`.
    :param float power: alpha of the power target p(x)^alpha times the scores' factors, see :func:`~ppl_llm.inference.power`: solutions
        that the language model finds probable as a whole. Propose with ``StepProposal(temperature=1 / alpha)``.
    :param bridge: the steps along which the power grows, or the powers; in particle filters only, and the target stays the same.
    :param int max_steps: steps at most; longer solutions are cut, and stay unfinished.
    :param stop: delimiter(s) of steps; ``markdown`` for blank lines outside of code fences and display mathematics.
    :param int max_tokens: longest step.
    :param float temperature: of the language model; p is the tempered model.
    :param float top_p: nucleus sampling.
    :param int top_k: sampling from the most probable tokens only.
    :param str aggregation: replaces the preset's, see :meth:`Preset.aggregation_for`.
    :param float score_temperature: T_s of every potential but ``likelihood``.
    :param str potential: replaces the preset's, e.g. ``max`` or ``sum`` with ``twisted``: the same target by another way.
    :param str score: ``log_prob`` or ``log_odds``, what the potentials ``difference``, ``max`` and ``sum`` steer by.
    :param str finish: replaces the preset's regular expression that finishes a particle.
    :param bool early_exit: stop when every particle is done. ``False`` always makes ``max_steps`` steps, the last ones empty and free, for
        algorithms that need the same sites in every execution (Pyro's ``Predictive`` and ``MCMC``).
    :param int tokens_per_step: steps of so many tokens each, whatever they say, in place of ``stop`` and ``max_tokens``.
    :param Constraint constraint: on the solution; p is the language model renormalised at each token over what may follow. For the language
        model given that the solution is in a language, run the model with ``proposals=constraint`` instead.
    :param int max_tokens_completion: tokens of a solution at most; one that is longer is cut, and is unfinished as at ``max_steps``: a
        reward of whole answers gives it weight zero. ``None`` for as many as the model's context holds.
    :param str answer_fallback: of a solution that gives its answer in no known form ``last-number`` takes the last number, ``text`` all of
        its text; ``code`` takes the last code block, and looks at nothing else.
    :param str every: a factor at every ``token``, ``word`` or ``line`` of the text, or wherever a match of a regular expression ends: steps
        end there, in place of ``stop``, so that a critic steers within a line (:doc:`/constraints`); ``max_steps`` of them at most.
    :param tuple final_stop: texts that end a solution wherever they come, also across steps, and are no part of it, nor is what follows.
    :param int waits: with it, ``close`` or ``max_thinking`` solutions think before they answer (:doc:`/thinking`): a closing tag that
        comes early is replaced so many times, and answers are looked for after the thinking only.
    :param str wait: what the tag is replaced by.
    :param str close: the tag, ``</think>`` by default; it ends a step wherever it comes.
    :param int max_thinking: tokens of thinking at most; it is closed there.
    :param Confidence confidence: how sure the language model is of a solution, taken while it is written for ``confidence.of(context)``,
        for records and for votes such as :class:`~ppl_llm.DeepConf`; of no effect on the distribution.
    :raises ValueError: for an unknown preset or options out of range.
    """
    thinking = thinking_of(waits, wait, close, max_thinking)
    if confidence is not None and not isinstance(confidence, Certainty):
        raise ValueError(f"confidence must be a Confidence, such as Confidence('top-k', window=64), got {confidence!r}")
    check_optional_count("max_tokens_completion", max_tokens_completion)
    if not isinstance(final_stop, tuple | list) or not all(isinstance(text, str) and text for text in final_stop):
        raise ValueError(f"final_stop must be a tuple of non-empty strings, got {final_stop!r}")
    if answer_fallback is not None and answer_fallback not in FALLBACKS:
        raise unknown_name("answer_fallback", answer_fallback, FALLBACKS)
    bridge_powers(power, bridge)  # what is out of range fails here
    if final_stop and tokens_per_step is None and every is None:  # a step ends there, too, so that no token follows
        stop = tuple(dict.fromkeys((*((stop,) if isinstance(stop, str) else stop), *final_stop)))
    chosen = get_preset(preset)
    if potential is not None:
        chosen = replace(chosen, potential=potential)
    check_count("max_steps", max_steps)
    aggregation = aggregation if aggregation is not None else chosen.aggregation_for(prm)
    # What does not go together fails here.
    choices = RewardChoices(chosen.potential, score_temperature, aggregation, chosen.finished, score)
    if prm is not None:
        choices.check(prm)
        if chosen.potential == "odds" and max_steps > 1 and waits_for_the_end(prm):
            raise no_odds(type(prm).__name__)
    if chosen.selection is not None:
        chosen = replace(chosen, selection=replace(chosen.selection, num_steps=max_steps))
    options = StepOptions(*step_limits(stop, max_tokens, tokens_per_step, every), temperature, top_p, top_k, constraint)
    if thinking is not None:
        options = with_thinking(options, thinking, lm, max_tokens_completion)
    return ReasoningModel(
        lm,
        prm,
        chosen,
        max_steps,
        options,
        aggregation,
        score_temperature,
        finish if finish is not None else chosen.finish,
        early_exit,
        score,
        max_tokens_completion,
        answer_fallback,
        float(power),
        bridge if bridge is None or isinstance(bridge, int) else tuple(bridge),
        every,
        final_stop,
        thinking,
        confidence,
    )


def build_reasoning(lm: LanguageModel | None, prm: RewardModel | None, preset: str | Preset = "exact", **options: Any) -> ReasoningModel:
    """:func:`reasoning`; without a language model one that cannot run, to have its options checked before anything is loaded."""
    build = reasoning if lm is not None else inspect.unwrap(reasoning)
    return build(lm, prm, preset, **options)  # type: ignore[arg-type]


describe("ReasoningModel", "made by reasoning(lm, prm)")
