"""The language model's own certainty as a reward."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..context import DEFAULT_STOP, PAD, Context
from ..inference.util.checked import checked
from ..inference.util.validation import unknown_name
from ..lm.autoregressive import AutoregressiveLM
from ..lm.base import StepOptions, language_model
from ..lm.token_figures import MEASURES, TokenFigure, kept, want
from .score_cache import ScoreCache, repeat_last


class SelfCertainty:
    """A step's score is s = exp(c): c is the mean over its tokens of log p(token), so that s is the geometric mean of their probabilities,
    or of minus the entropy of the distribution that each token comes from.

    This is not the self-certainty of Kang et al. (2025, arXiv:2502.18581), the divergence of that distribution from the uniform one: see
    :func:`ppl_llm.evaluation.self_certainty.self_certainty`.

    Under the potential ``likelihood`` a step's log-factor is c itself, under ``odds`` it is logit(exp c). It needs no reward model: the
    measure is summed while the context's language model samples a step, and only steps that were not sampled, and the first one where
    nobody called :meth:`prepare`, cost a pass (a :class:`~ppl_llm.reward.base.RewardModel`).

    :param str measure: ``log_prob``, or ``entropy``, for local language models only.
    :param stop: the delimiter(s) that the steps are sampled with.
    :param float temperature: of the distribution that p is taken from; 1 for the model's own, whatever the steps are sampled at.
    :raises ValueError: for an unknown measure; later, for a step that the language model could not have taken with this ``stop``.
    """

    @checked
    def __init__(self, measure: str = "log_prob", *, stop: str | tuple[str, ...] = DEFAULT_STOP, temperature: float = 1.0) -> None:
        if measure not in MEASURES:
            raise unknown_name("measure", measure, MEASURES)
        self.measure = measure
        self.options = StepOptions(stop=stop, temperature=temperature)
        self._figure = TokenFigure(measure, temperature)
        self._cache = ScoreCache()

    def prepare(self, context: Context) -> None:
        """Have the measure summed while steps are sampled from here on."""
        want(context, self._figure)

    def step_log_odds(self, context: Context) -> Tensor:
        self.prepare(context)
        scores = self._cache.get(context)
        if scores.shape[-1] == context.num_steps:
            return scores
        for step in range(scores.shape[-1], context.num_steps):
            score, taken = self._score(context, step)
            scores = repeat_last(scores, score[..., None], taken[..., None])
        return self._cache.put(context, scores, "SelfCertainty")

    def _score(self, context: Context, step: int) -> tuple[Tensor, Tensor]:
        """Log-odds ``[*batch]`` of a step, and which sequences took it."""
        before, tokens = split_step(context, step)
        size = (tokens != PAD).sum(-1)
        # Steps that ran into max_tokens are the longest of this step: with their length as the bound, all of them end where they ended.
        options = replace(self.options, max_tokens=tokens.shape[-1])
        total = self._total(context, before, tokens, options)
        taken = size > 0
        impossible = (taken & ~torch.isfinite(total)).nonzero()
        if len(impossible):
            raise ValueError(
                f"step {step} of sequence {tuple(impossible[0].tolist())} has probability zero under its language model with "
                f"stop={self.options.stop!r}; SelfCertainty needs the stop that the steps are sampled with"
            )
        mean = torch.where(taken, total / size.clamp(min=1), -1.0).clamp(max=0.0)
        return (mean - torch.log(-torch.expm1(mean))).float(), taken

    def _total(self, context: Context, before: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """Sum of the measure ``[*batch]`` in float64 over the tokens of a step."""
        lm, sign = language_model(before), 1.0 if self.measure == "log_prob" else -1.0
        if sign < 0 and not isinstance(lm, AutoregressiveLM):
            raise ValueError(f"measure='entropy' needs the logits of a local language model, which {type(lm).__name__} does not give")
        found = kept(context, self._figure, before.lengths, tokens)
        known = torch.zeros_like(before.done) if found is None else found[1]
        total = torch.zeros_like(before.lengths, dtype=torch.float64) if found is None else torch.where(known, sign * found[0], 0.0)
        if bool(known.all()):
            return total
        rest = replace(before, done=before.done | known)
        others = torch.where(known[..., None], PAD, tokens)
        scored = lm.step_log_prob(rest, others, options) if sign > 0 else -lm.step_entropy(rest, others, options)  # type: ignore[attr-defined]
        return total + scored.double()


def split_step(context: Context, step: int) -> tuple[Context, Tensor]:
    """The context before a step, and the step's tokens ``[*batch, M]`` padded with ``PAD``."""
    starts, ends = context.step_starts[..., step], context.ends[..., step]
    width = max(1, int((ends - starts).max()))
    column = starts[..., None] + torch.arange(width, device=starts.device)
    tokens = context.tokens.gather(-1, column.clamp(max=context.tokens.shape[-1] - 1))
    before = replace(context.before(step), cache_entries=context.cache_entries)  # the passes over both are the same
    return before, torch.where(column < ends[..., None], tokens, PAD)
