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


def mean_hidden_state(lm: Any, context: Any) -> Tensor:
    """The mean hidden state over the tokens of the last step of a context, or the state after the prompt: ``[*batch_shape, H]``.

    A forward pass over these tokens, as what comes before is in the KV cache; 0 for sequences that had finished before the step.

    :raises ValueError: for a language model that gives no hidden states.
    """
    states = getattr(lm, "hidden_states", None)
    if states is None:
        raise ValueError(f"{type(lm).__name__} gives no hidden states, of which Context.embedding() is made; give embed=")
    starts, ends = (context.step_starts[..., -1], context.ends[..., -1]) if context.num_steps else (context.lengths - 1, context.lengths)
    column = torch.arange(max(1, int((ends - starts).max())), device=starts.device)
    positions = torch.where(column < (ends - starts)[..., None], starts[..., None] + column, -1)
    mean: Tensor = states(context, positions).sum(-2) / (ends - starts).clamp(min=1)[..., None]
    return mean
