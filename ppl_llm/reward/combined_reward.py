"""Several rewards as one: their weighted product in probability, or their weighted sum in log-odds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..context import Context
from ..context_cache import label_of
from ..inference.util.checked import checked
from ..stop_reason import StopReason
from .base import RewardModel, is_estimated, prepare, scored_steps, step_scores


def refuse_estimates(rewards: Sequence[RewardModel], what: str, instead: str) -> None:
    """
    :raises ValueError: for scores that are estimates.
    """
    for reward in rewards:
        if is_estimated(reward):
            raise ValueError(
                f"the scores of {type(reward).__name__} are estimates, drawn at random, and {what} is no function of their means: take "
                f"{instead}, or a judge without thoughts"
            )


class CombinedReward(ABC):
    """Base of rewards made of others (a :class:`~ppl_llm.reward.base.RewardModel`).

    It keeps nothing itself. Each part keeps its scores with the context under its own key, so that a part may be used in several
    combinations and alone.

    :param rewards: the parts, at least one.
    :param weights: a number for each part, 1 by default.
    :ivar float neutral: log-odds of a part that says nothing.
    :raises ValueError: without parts, or for weights that do not fit them.
    """

    neutral: float

    @checked
    def __init__(self, rewards: Sequence[RewardModel], weights: Sequence[float] | None = None) -> None:
        self.rewards = tuple(rewards)
        self.weights = (1.0,) * len(self.rewards) if weights is None else tuple(float(weight) for weight in weights)
        name = type(self).__name__
        if not self.rewards:
            raise ValueError(f"{name} needs at least one reward")
        for reward in self.rewards:
            if not isinstance(reward, RewardModel):
                raise ValueError(f"{name} got {reward!r}, which is no reward model: it has no step_log_odds(context)")
        if len(self.weights) != len(self.rewards) or not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"{name} needs {len(self.rewards)} finite weights, none negative, got {weights!r}")

    def prepare(self, context: Context) -> None:
        """See :func:`~ppl_llm.reward.base.prepare`."""
        for reward in self.rewards:
            prepare(reward, context)

    @property
    def label(self) -> str:
        """Tells it from other rewards, by its parts and their weights."""
        parts = ", ".join(f"{weight:g} {label_of(reward)}" for weight, reward in zip(self.weights, self.rewards, strict=True))
        return f"{type(self).__name__}({parts})"

    def release_caches(self) -> None:
        """Those of the parts."""
        for reward in self.rewards:
            if callable(release := getattr(reward, "release_caches", None)):
                release()

    @property
    def estimated(self) -> bool:
        """Whether some part's scores are estimates, drawn at random."""
        return any(map(is_estimated, self.rewards))

    def step_log_odds(self, context: Context) -> Tensor:
        """:raises ValueError: if parts contradict each other with certainty, one saying inf and another -inf."""
        return self._scores(context, last_step=False)

    def concluded_log_odds(self, context: Context) -> Tensor:
        """:meth:`step_log_odds` where no step will follow, see :func:`~ppl_llm.reward.base.step_scores`."""
        return self._scores(context, last_step=True)

    def _scores(self, context: Context, last_step: bool) -> Tensor:
        pairs = zip(self.weights, self.rewards, strict=True)
        parts = [(weight, self._part(reward, context, last_step)) for weight, reward in pairs if weight > 0]
        if not parts:
            return torch.zeros(*context.batch_shape, context.num_steps, device=context.tokens.device)
        return self._combined(parts)

    def scored_steps(self, context: Context) -> Tensor:
        """The steps that some part scores, ``[*batch, T]``."""
        return torch.stack([scored_steps(reward, context) for reward in self.rewards]).any(0)

    def _part(self, reward: RewardModel, context: Context, last_step: bool) -> Tensor:
        """A part's scores, which says nothing of a step that it does not score."""
        scores = step_scores(reward, context, last_step)
        if not hasattr(reward, "scored_steps"):
            return scores
        taken = context.reasons != StopReason.FINISHED
        silent = (taken & ~scored_steps(reward, context)).to(scores.device)
        return torch.where(silent, self.neutral, scores)

    @abstractmethod
    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        """Log-odds from positive weights and the log-odds ``[*batch, T]`` of the parts."""


class ProductReward(CombinedReward):
    """Probability r = prod_i r_i^(w_i): that every part accepts, if they err independently.

    Under the potential ``likelihood`` the log-factors of the parts add up. The neutral value is certainty, ``pending=inf``, the default of
    parts that wait for the finished answer; a part that is certain of the contrary (``-inf``) decides.

    :param rewards: the parts, at least one.
    :param weights: w_i, not negative; 1 by default, and for a part whose scores are estimates: no power of one is unbiased.
    """

    neutral = math.inf

    def __init__(self, rewards: Sequence[RewardModel], weights: Sequence[float] | None = None) -> None:
        super().__init__(rewards, weights)
        for reward, weight in zip(self.rewards, self.weights, strict=True):
            if is_estimated(reward) and weight not in (0.0, 1.0):
                raise ValueError(f"the scores of {type(reward).__name__} are estimates, and a power of one is biased: its weight must be 1")

    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        log_r = torch.stack([weight * logsigmoid(z.double()) for weight, z in parts]).sum(0)
        # log r - log(1 - r); 1 - r is a sum of small numbers where r is near 1, which double precision and expm1 keep.
        return (log_r - torch.log(-torch.expm1(log_r))).to(parts[0][1].dtype)


class SumReward(CombinedReward):
    """Log-odds z = sum_i w_i z_i.

    With weights 1 the parts are independent pieces of evidence about one event, each with even prior odds; with weights that sum to 1 it
    is their logarithmic opinion pool. Under the potential ``odds`` the log-factors of the parts add up. A part that is certain (``inf``)
    overrules the others; the neutral value is 0, hence ``pending=0.0`` for parts that wait for the finished answer.

    :param rewards: the parts, at least one.
    :param weights: w_i, not negative; 1 by default.
    :raises ValueError: also for a part whose scores are estimates, as a sum of log-odds is no function of their means.
    """

    neutral = 0.0

    def __init__(self, rewards: Sequence[RewardModel], weights: Sequence[float] | None = None) -> None:
        super().__init__(rewards, weights)
        refuse_estimates(self.rewards, "a sum of log-odds", "ProductReward")

    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        total = parts[0][0] * parts[0][1]
        for weight, z in parts[1:]:
            total = total + weight * z
        bad = total.isnan().nonzero()
        if len(bad):
            *sequence, step = bad[0].tolist()
            raise ValueError(
                f"the rewards of step {step} of sequence {tuple(sequence)} contradict each other with certainty (inf and -inf); "
                "use ProductReward, or pending=0.0 and values short of certain"
            )
        return total
