"""The architecture of Qwen2.5-Math-PRM, so that its directories load without running the code they ship."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from .head_columns import head_columns


class Qwen2PRM(Qwen2PreTrainedModel):
    """A Qwen2 backbone with a two-layer head on every token.

    Parameter names are those of the published checkpoints: ``model.*``, ``score.0.*``, ``score.2.*``.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int | list[int] = 0, **kwargs: Any
    ) -> Tensor:
        """Logits ``[B, L, 2]`` (wrong, right) of each token, or of those to keep."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits: Tensor = self.score(head_columns(hidden, logits_to_keep).to(self.score[0].weight.dtype))
        return logits

    def log_odds(self, **inputs: Any) -> Tensor:
        """Log-odds ``[B, L, 1]`` that what ends at a token is right."""
        logits = self(**inputs).float()
        return logits[..., 1:] - logits[..., :1]

    def with_precise_head(self) -> Qwen2PRM:
        """The same model with its head in float32: in bfloat16 log-odds beyond 4 are rounded to multiples of 1/32."""
        self.score.to(torch.float32)
        return self
