"""The answer that a reasoning model gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..answers.voting import Answer, argmax, weighted_majority
from ..context import Context
from ..distributions import prefix_log_odds
from ..inference import Equivalent
from ..inference.posterior.particle_posterior import ParticlePosterior
from ..reward.base import RewardModel, scored_steps, step_scores
from .presets import Preset


class ChoosesAnswer:
    """How a :class:`~ppl_llm.programs.models.ReasoningModel` chooses among the solutions of a posterior."""

    prm: RewardModel | None
    preset: Preset
    max_steps: int
    aggregation: str

    @property
    def _reward(self) -> RewardModel:
        if self.prm is None:
            raise ValueError("this model has no reward: its solutions have no scores; give reasoning(...) a reward model")
        return self.prm

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
