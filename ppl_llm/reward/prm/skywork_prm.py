"""The architecture of Skywork-o1-Open-PRM, so that its directories load without running the code they ship."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from .head_columns import head_columns


class SkyworkPRM(Qwen2PreTrainedModel):
    """A Qwen2 backbone with a linear value head on every token, whose value is the log-odds.

    Parameter names are those of the published checkpoints: ``model.*``, ``v_head.summary.*``. The head of the language model that they hold
    as well is left out.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\."]

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.ModuleDict({"summary": nn.Linear(config.hidden_size, 1)})
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int | list[int] = 0, **kwargs: Any
    ) -> Tensor:
        """Values ``[B, L, 1]`` of each token, or of those to keep."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        head = self.v_head["summary"]
        values: Tensor = head(head_columns(hidden, logits_to_keep).to(head.weight.dtype))
        return values

    def log_odds(self, **inputs: Any) -> Tensor:
        """Log-odds ``[B, L, 1]`` that what ends at a token is right."""
        return self(**inputs).float()

    def with_precise_head(self) -> SkyworkPRM:
        """The same model with its head in float32."""
        self.v_head.to(torch.float32)
        return self
