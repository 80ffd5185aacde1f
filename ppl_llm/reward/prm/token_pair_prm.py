"""A language model as a reward model: the log-odds of two tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .head_columns import head_columns

_OTHER_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of architectures that do more to hidden states than multiply them by the head's rows."""


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
