"""Hidden states of a causal language model: its forward pass up to the head."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from .masks import LayerMasks
from .support import agree, cache_keyword


def head_columns(hidden: Any, logits_to_keep: int | list[int]) -> Any:
    """Those of the last so many columns of ``[B, L, h]``, all for 0, or of given columns; as transformers' language models have it."""
    return hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]


class HiddenForward:
    """The forward pass up to the head, as :class:`~ppl_llm.kv_cache.engine.CacheEngine` calls it; its outputs are hidden states.

    :param model: a transformers causal language model.
    :param int max_length: longest context.
    :param device: where states are wanted.
    """

    def __init__(self, model: Any, max_length: int, device: torch.device) -> None:
        self._model, self._keyword, self._device = model, cache_keyword(model), device
        self._masks = LayerMasks(model.config.get_text_config(), max_length)

    @property
    def size(self) -> int:
        """Numbers in a state."""
        return int(self._model.config.get_text_config().hidden_size)

    def __call__(self, cache: Cache, logits_to_keep: int | list[int] = 0, **inputs: Any) -> Tensor:
        hidden = self._model.base_model(**self._masks.narrowed(inputs), **{self._keyword: cache}).last_hidden_state
        states: Tensor = head_columns(hidden, logits_to_keep)
        return states

    def whole(self, ids: Tensor) -> Tensor:
        """States ``[A, L, H]`` of whole sequences, without a cache."""
        states: Tensor = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states.to(self._device)

    def logits(self, states: Tensor) -> Tensor:
        """Logits ``[A, V]`` after tokens with the states ``[A, H]``; where :attr:`suffices`."""
        head = self._model.get_output_embeddings()
        found: Tensor = head(states.to(head.weight.dtype))
        return found.to(self._device)

    @cached_property
    @torch.no_grad()
    def suffices(self) -> bool:
        """Whether the logits are the head's of the states and nothing else, which a few tokens show; softcaps and scales are not."""
        ids = (torch.arange(8, device=self._device)[None] * 5) % 11 + 2
        return agree(self.logits(self.whole(ids)), self._model(input_ids=ids, use_cache=False).logits.to(self._device))
