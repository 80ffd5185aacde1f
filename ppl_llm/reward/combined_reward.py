"""Several rewards as one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..context import Context
from .base import RewardModel


class CombinedReward(ABC):
    """Base of rewards made of others (a :class:`~ppl_llm.reward.base.RewardModel`).

    It keeps nothing itself: what the parts remember they note on the context, each under its own name, so that a part may be used in
    several combinations and alone.

    :param rewards: the parts, at least one.
    :param weights: a number for each part, 1 by default.
    :raises ValueError: without parts, or for weights that do not fit them.
    """

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

    def step_log_odds(self, context: Context) -> Tensor:
        """:raises ValueError: if parts contradict each other with certainty, one saying inf and another -inf."""
        parts = [(weight, reward.step_log_odds(context)) for weight, reward in zip(self.weights, self.rewards, strict=True) if weight > 0]
        if not parts:
            return torch.zeros(*context.batch_shape, context.num_steps, device=context.tokens.device)
        return self._combined(parts)

    @abstractmethod
    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        """Log-odds from positive weights and the log-odds ``[*batch, T]`` of the parts."""
