"""A process reward model given by a table, for exact enumeration."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import Context
from ..inference.util.checked import checked


class TabularReward:
    """Scores a step by the whole prefix: ``bias`` plus the sum of ``log_odds[token]`` over all generated tokens, discounted by age.

    :param Tensor log_odds: ``[V]`` contribution of each token.
    :param float bias: log-odds of an empty prefix.
    :param float discount: factor per later token; below 1 recent tokens count more, and order matters.
    """

    @checked
    def __init__(self, log_odds: Tensor, bias: float = 0.0, discount: float = 1.0) -> None:
        self.log_odds, self.bias, self.discount = log_odds, bias, discount

    def step_log_odds(self, context: Context) -> Tensor:
        position = torch.arange(context.tokens.shape[-1], device=context.tokens.device)
        generated = (position >= context.prompt_lengths[..., None]) & (context.tokens >= 0)
        worth = torch.where(generated, self.log_odds.to(torch.float64)[context.tokens.clamp(min=0)], 0.0)
        ends = context.ends[..., None]  # [*batch, T, 1]
        age = (ends - 1 - position).clamp(min=0)
        seen = position < ends
        scores = self.bias + torch.where(seen, worth[..., None, :] * self.discount**age, 0.0).sum(-1)
        if torch.isnan(scores).any():
            sequence = tuple(torch.isnan(scores).nonzero()[0].tolist())
            raise ValueError(f"nan log-odds at sequence and step {sequence}; check the table of TabularReward")
        # The end of a finished sequence does not move, so it repeats its last score.
        return scores.to(torch.float32)
