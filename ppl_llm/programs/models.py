"""Ready models: step-by-step reasoning under the targets that people use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..answers.extraction import FALLBACKS, FORMS
from ..answers.voting import Answer, argmax, weighted_majority
from ..constraints.base import Constraint
from ..context import DEFAULT_STOP, Context
from ..context_cache import label_of
from ..distributions import LLMStep, RewardChoices, StepReward, prefix_log_odds
from ..inference import Equivalent, barrier
from ..inference.handlers.power_messenger import PowerMessenger, bridge_powers
from ..inference.posterior.particle_posterior import ParticlePosterior
from ..inference.util.checked import checked, describe
from ..inference.util.safe_file import is_plain
from ..inference.util.validation import check_count, check_optional_count, unknown_name
from ..lm.base import LanguageModel, StepOptions, step_limits
from ..reward.base import RewardModel, prepare, scored_steps, step_scores
from .presets import Preset, get_preset


class ReasoningModel:
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
    ) -> None:
        self.power, self.bridge, self.every = power, bridge, every
        self.max_tokens_completion, self.answer_fallback, self.final_stop = max_tokens_completion, answer_fallback, final_stop
        self.lm, self.prm, self.preset, self.max_steps, self.options = lm, prm, preset, max_steps, options
        self.aggregation, self.score_temperature, self.finish = aggregation, score_temperature, finish
        self.early_exit, self.score = early_exit, score

    @property
    def settings(self) -> dict[str, Any]:
        """What the distribution of the model depends on, as plain values; a run that is resumed must have the same."""
        kind = {name: getattr(self.preset, name) for name in ("potential", "finished", "last_factor")}
        given = {**kind, **vars(self.options), **vars(self), "lm": label_of(self.lm), "prm": label_of(self.prm)}
        return {name: value for name, value in given.items() if is_plain(value)}

    def __call__(self, problem: Any) -> Context:
        """
        :param problem: what ``lm.start`` takes. A list of problems is a plate ``problems``: run it with ``max_plate_nesting=1``.
        """
        forms = (*FORMS, self.answer_fallback) if self.answer_fallback is not None else tuple(FORMS)
        limits: dict[str, Any] = {"max_completion": self.max_tokens_completion, "final_stop": self.final_stop}
        context = replace(self.lm.start(problem), answer_forms=forms, **limits)
        if self.prm is not None:
            prepare(self.prm, context)
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
        return ctx.extend(step, stop=o.stop, finish=self.finish)

    @property
    def _reward(self) -> RewardModel:
        if self.prm is None:
            raise ValueError("this model has no reward: its solutions have no scores; give reasoning(...) a reward model")
        return self.prm

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

    def prefix_scores(self, context: Context) -> Tensor:
        """``[*batch]``: log-odds of the aggregated score of each particle, by which ``argmax`` chooses."""
        real = scored_steps(self._reward, context)
        scores = step_scores(self._reward, context, last_step=context.num_steps >= self.max_steps)
        return prefix_log_odds(scores, real, self.aggregation)

    def choose(self, posterior: ParticlePosterior, equivalent: Equivalent | None = None) -> Any:
        """The answer that the preset gives; for a list of problems, one per problem.

        :param ParticlePosterior posterior: of this model, for a single problem or a list of them.
        :param equivalent: pools votes for answers that count as the same, e.g. :class:`~ppl_llm.MathEquivalence`; of no effect where the
            particle with the highest score decides.
        """
        context: Context = posterior.value
        answers, weights = context.answers(), posterior.weights.cpu()
        # Best-of-N and self-consistency are votes themselves, and the latter never asks the reward model.
        by_score = self.preset.vote == "argmax" and not getattr(posterior, "decisive", False) and self.prm is not None
        scores = self.prefix_scores(context).cpu() if by_score else weights

        def one(given: list[Answer], score: Tensor, weight: Tensor) -> Answer:
            if not by_score:
                return weighted_majority(given, weight.tolist(), equivalent)
            return argmax([answer if w > 0 else None for answer, w in zip(given, weight.tolist(), strict=True)], score.tolist())

        if len(context.batch_shape) == 1:
            return one(answers, scores, weights)
        return [one([row[p] for row in answers], scores[:, p], weights[:, p]) for p in range(context.batch_shape[1])]

    def choose_particle(self, context: Context, weights: list[float], answer: Any, equivalent: Equivalent | None = None) -> int:
        """The number of the solution that stands for an answer: of those that have it the one of the highest weight, or of the highest
        score where the preset chooses by score.

        Resampling leaves equal weights; among those the steps decide, by the probability that all are right.

        :param Context context: the solutions to one problem, ``[N]``.
        :param list weights: of each.
        :param answer: that was chosen; ``None`` where no solution has one, or every solution has weight zero.
        :param equivalent: when two answers are the same.
        """

        def chosen(given: Any) -> bool:
            return given == answer or (equivalent is not None and None not in (given, answer) and equivalent(given, answer))

        candidates = [n for n, given in enumerate(context.answers()) if chosen(given)] or list(range(len(weights)))
        if self.prm is None:
            return max(candidates, key=lambda n: weights[n])
        with torch.no_grad():
            log_odds, real = self.prm.step_log_odds(context).cpu(), scored_steps(self.prm, context).cpu()
            scores = self.prefix_scores(context).tolist()
        all_right = torch.where(real, torch.nn.functional.logsigmoid(log_odds), 0.0).sum(-1).tolist()
        by_score = self.preset.vote == "argmax"
        return max(candidates, key=lambda n: (scores[n], weights[n]) if by_score else (weights[n], all_right[n]))


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
    :param int max_steps: steps at most; longer solutions stay unfinished.
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
    :param int max_tokens_completion: tokens of a solution at most; one that reaches them is finished. ``None`` for as many as the
        model's context holds.
    :param str answer_fallback: of a solution that gives its answer in no known form ``last-number`` takes the last number, ``text`` all of
        its text.
    :param str every: a factor at every ``token``, ``word`` or ``line`` of the text, or wherever a match of a regular expression ends: steps
        end there, in place of ``stop``, so that a critic steers within a line (:doc:`/constraints`); ``max_steps`` of them at most.
    :param tuple final_stop: texts that end a solution wherever they come, also across steps, and are no part of it, nor is what follows.
    :raises ValueError: for an unknown preset or options out of range.
    """
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
    if chosen.selection is not None:
        chosen = replace(chosen, selection=replace(chosen.selection, num_steps=max_steps))
    return ReasoningModel(
        lm,
        prm,
        chosen,
        max_steps,
        StepOptions(*step_limits(stop, max_tokens, tokens_per_step, every), temperature, top_p, top_k, constraint),
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
    )


def build_reasoning(lm: LanguageModel | None, prm: RewardModel | None, preset: str | Preset = "exact", **options: Any) -> ReasoningModel:
    """:func:`reasoning`; without a language model one that cannot run, to have its options checked before anything is loaded."""
    build = reasoning if lm is not None else inspect.unwrap(reasoning)
    return build(lm, prm, preset, **options)  # type: ignore[arg-type]


describe("ReasoningModel", "made by reasoning(lm, prm)")
