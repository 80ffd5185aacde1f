"""What a context asks of its language model."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class StopRule(Protocol):
    def start(self, context: Any) -> Tensor:
        """The state ``[*batch_shape]`` in which the next step of each sequence of a context begins."""
        ...

    def accepts(self, tokens: Tensor, state: Tensor) -> Tensor:
        """Whether steps ``[*batch_shape, M]`` padded with ``PAD``, which begin in a state, come to a delimiter: ``[*batch_shape]``."""
        ...


class ContextLM(Protocol):
    """What a context asks of its language model.

    :ivar int vocab_size: number of token ids.
    :ivar int max_length: longest context in tokens.
    :ivar Tensor eos_ids: token ids that end the text.
    """

    vocab_size: int
    max_length: int
    eos_ids: Tensor

    @property
    def device(self) -> torch.device: ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without end-of-text tokens."""
        ...

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopRule:
        """Recognises ``stop`` in a stream of tokens."""
        ...
