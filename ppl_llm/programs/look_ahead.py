"""A look at the next step before resampling."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..context import Context
from ..distributions import RewardChoices, StepReward
from ..inference.particles.weights import Weights
from ..inference.util.checked import checked
from ..inference.util.validation import check_optional_count
from ..lm.base import LanguageModel, StepOptions
from ..reward.base import RewardModel

if TYPE_CHECKING:
    from .models import ReasoningModel


class LookAhead:
    """The auxiliary particle filter for reasoning (a :class:`~ppl_llm.inference.Selection`): particles are resampled by what may come next.

    At a barrier every particle draws one more step, which is scored and then discarded. Particles are resampled in proportion to
    ``weight * factor^power`` and keep the residual weight ``1 / factor^power``, so that every estimate stays unbiased. It doubles the
    number of tokens that the filter samples::

        model = reasoning(lm, prm, "exact")
        SMC(model, 16, ess_threshold=1.0, selection=LookAhead.of(model)).run(problem)

    :param LanguageModel lm: draws the steps to come; a smaller one with the same tokenizer will do.
    :param RewardModel prm: scores them.
    :param StepOptions options: how a step is drawn, as in the model; at another temperature if you like.
    :param float power: 0 is resampling by weight alone, 1 trusts the one step drawn in full; in between the residual weights vary less.
    :param str potential: what a step's score contributes, as for :class:`StepReward`; the other keywords likewise.
    :param str finish: regular expression that finishes a particle, as in the model.
    :param int max_steps: steps of the model; nothing comes after the last.
    :param float floor: factors below it count as that much, so that no particle of positive weight is lost for good.
    :raises ValueError: for arguments out of range.

    References

    [1] *Filtering via Simulation: Auxiliary Particle Filters*, Michael Pitt, Neil Shephard (1999).
    [2] *Entropic particle filtering for language models*, arXiv 2510.05825 (2025), look-ahead modulation.
    """

    keeps_target = True

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        prm: RewardModel,
        options: StepOptions | None = None,
        *,
        power: float = 0.5,
        potential: str = "likelihood",
        score_temperature: float = 1.0,
        aggregation: str = "last",
        score: str = "log_prob",
        finish: str | None = None,
        max_steps: int | None = None,
        floor: float = 1e-4,
    ) -> None:
        if not 0 <= power < math.inf:
            raise ValueError(f"power must be a number of at least 0, got {power!r}")
        if not 0 < floor < 1:
            raise ValueError(f"floor must lie in (0, 1), got {floor!r}")
        check_optional_count("max_steps", max_steps)
        self.lm, self.prm = lm, prm
        self.options = options if options is not None else StepOptions()
        self.power, self.floor, self.finish, self.max_steps = power, floor, finish, max_steps
        self.choices = RewardChoices(potential, score_temperature, aggregation, score=score)

    @classmethod
    def of(cls, model: ReasoningModel, *, power: float = 0.5, temperature: float | None = None, floor: float = 1e-4) -> LookAhead:
        """The look-ahead of a reasoning model.

        :param float temperature: of the steps to come; the model's own by default.
        :raises ValueError: for a model without a reward.
        """
        if model.prm is None:
            raise ValueError("a look-ahead asks the reward model, and this model has none")
        options = model.options if temperature is None else replace(model.options, temperature=temperature)
        return cls(
            model.lm,
            model.prm,
            options,
            power=power,
            potential=model.preset.potential,
            score_temperature=model.score_temperature,
            aggregation=model.aggregation,
            score=model.score,
            finish=model.finish,
            max_steps=model.max_steps,
            floor=floor,
        )

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        if self.max_steps is not None and step + 1 >= self.max_steps:
            return weights.log_weights
        context = _context_of(state)
        if context is None:
            raise ValueError(f"LookAhead needs a Context in what the model passes to barrier(), got {type(state).__name__}")
        return weights.log_weights + self.power * self._sum_like(weights.log_weights, self.log_factor(context))

    def log_factor(self, context: Context) -> Tensor:
        """``[*batch]``: of a drawn next step; 0 on particles that are done."""
        if self.lm is not context.lm:
            context = replace(context, lm=self.lm)
        tokens = self.lm.sample_step(context, context.batch_shape, self.options).tokens
        successor = context.extend(tokens, stop=self.options.stop, finish=self.finish)
        reward = StepReward(self.prm, successor, **asdict(self.choices))
        return reward.log_prob(torch.ones((), device=tokens.device)).to(torch.float64).clamp(min=math.log(self.floor))

    @staticmethod
    def _sum_like(log_weights: Tensor, log_factor: Tensor) -> Tensor:
        """Summed over the batch dimensions that one population holds."""
        shared = [d for d in range(1, log_factor.dim()) if log_weights.shape[d] == 1 and log_factor.shape[d] > 1]
        return (log_factor.sum(shared, keepdim=True) if shared else log_factor).to(log_weights.device)


def _context_of(state: Any) -> Context | None:
    """The first context in a state."""
    if isinstance(state, Context):
        return state
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return next((found for found in map(_context_of, items) if found is not None), None)
