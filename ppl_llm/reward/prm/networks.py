"""The networks of the published process reward models, so that their directories load without running the code they ship."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from ...kv_cache.hidden import head_columns

_OTHER_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of architectures that do more to hidden states than multiply them by the head's rows."""


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


class TokenPairPRM(nn.Module):
    """A causal language model that names a good step by one token and a bad step by another.

    Only these two rows of the head are used, in float32; the rest of it can be freed.

    :param lm: a transformers causal language model.
    :param int good: the token after a good step.
    :param int bad: the token after a bad step.
    :raises ValueError: if its logits are not a linear function of its hidden states, or its head is not in memory.
    """

    def __init__(self, lm: Any, good: int, bad: int) -> None:
        super().__init__()
        self.config = lm.config
        for name in _OTHER_LOGITS:
            if getattr(lm.config.get_text_config(), name, None) not in (None, 1.0):
                raise ValueError(f"{type(lm).__name__} changes its logits ({name}), which no known '+/-' reward model does")
        self.backbone = lm.base_model
        head = lm.get_output_embeddings()
        if head.weight.is_meta:
            raise ValueError("the head of the language model is offloaded from memory; use a device_map that keeps it on a device")
        rows = head.weight[[good, bad]].detach().to(torch.float32)
        bias = getattr(head, "bias", None)
        self.register_buffer("rows", rows[0] - rows[1])
        self.register_buffer("shift", rows.new_zeros(()) if bias is None else (bias[good] - bias[bad]).detach().float())

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def log_odds(self, input_ids: Tensor, logits_to_keep: int | list[int] = 0, **inputs: Any) -> Tensor:
        """Log-odds ``[B, L, 1]`` of the good token against the bad one as the next."""
        hidden = head_columns(self.backbone(input_ids=input_ids, **inputs).last_hidden_state, logits_to_keep)
        return (hidden.float().to(self.rows.device) @ self.rows + self.shift)[..., None]
