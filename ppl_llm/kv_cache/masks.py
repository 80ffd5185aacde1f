"""Attention masks of models whose layers do not all look back equally far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FULL, _SLIDING = "full_attention", "sliding_attention"


class LayerMasks:
    """Narrows the mask of a KV cache for layers with a sliding window.

    A KV cache keeps every token, so that a window is a matter of the mask alone: in a sliding layer, position j sees position i if
    j - window < i <= j.

    :param config: the text config of a transformers model.
    :param int max_length: longest context; a window that spans it is none.
    :ivar kinds: the kinds of layers.
    :ivar window: tokens that a sliding layer sees, ``None`` where no layer slides.
    :ivar mapped: whether the model takes one mask for each kind.
    """

    def __init__(self, config: Any, max_length: int) -> None:
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", None) is not False else None
        self.kinds: tuple[str, ...] = tuple(sorted(set(kinds))) if kinds else (_FULL if window is None else _SLIDING,)
        self.mapped = bool(kinds) and self.kinds != (_FULL,)
        self.window = window if _SLIDING in self.kinds and window is not None and window < max_length else None

    @property
    def obstacle(self) -> str | None:
        """Why keys and values of every token with a mask are not all that the layers need, or ``None``."""
        others = [kind for kind in self.kinds if kind not in (_FULL, _SLIDING)]
        return f"it has layers of the kind {', '.join(others)}" if others else None

    def __call__(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model's forward pass takes as ``attention_mask``.

        :param Tensor mask: ``[A, 1, q, T]``, true where a token may be seen.
        :param Tensor positions: ``[A, q]`` of the tokens that look.
        """
        narrow = mask
        if self.window is not None:
            column = torch.arange(mask.shape[-1], device=mask.device)
            narrow = mask & (column > positions[:, None, :, None] - self.window)
        if self.mapped:
            return {_FULL: mask, _SLIDING: narrow}
        return narrow if self.kinds == (_SLIDING,) else mask

    def narrowed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The keywords of a forward pass with the mask that the model takes in place of a KV cache's."""
        segments = inputs.get("segments")
        positions = inputs["position_ids"] if segments is None else segments.looking
        if self.window is not None:  # a sequence need not see all of the columns that sequences share
            inputs.pop("shared", None)
        return inputs | {"attention_mask": self(inputs["attention_mask"], positions)}
