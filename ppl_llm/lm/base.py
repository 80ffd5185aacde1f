"""What a language model offers to the distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..context import DEFAULT_STOP, Context
from .stopping import StopAutomaton


@dataclass(frozen=True)
class StepOptions:
    """How one step is sampled.

    :param stop: delimiter string(s) that end a step and belong to it, e.g. ``("\\n\\n", "</think>")``; ``()`` for none, so that every step
        goes on for ``max_tokens``, or to the end of the text or of the model's context.
    :param int max_tokens: longest step; one that reaches it ends with reason ``LENGTH``.
    :param float temperature: divides the logits.
    :param float top_p: nucleus mass kept, after ``top_k``.
    :param int top_k: number of tokens kept.
    :raises ValueError: if a value is out of range.
    """

    stop: str | tuple[str, ...] = DEFAULT_STOP
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, tuple) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop must be a non-empty string or a tuple of them, got {self.stop!r}")
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ValueError(f"max_tokens must be an integer of at least 1, got {self.max_tokens!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}; for nearly greedy steps use a small one, e.g. 0.01")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k must be None or an integer of at least 1, got {self.top_k!r}")

    @property
    def stops(self) -> list[str]:
        """The delimiters as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def plain(self) -> bool:
        """Whether steps are drawn from the model itself: temperature 1, every token kept."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k is None


def step_limits(stop: str | tuple[str, ...], max_tokens: int, tokens_per_step: int | None) -> tuple[str | tuple[str, ...], int]:
    """``stop`` and ``max_tokens``, or those of steps of a fixed number of tokens, which no delimiter ends.

    :raises ValueError: if ``tokens_per_step`` is out of range.
    """
    if tokens_per_step is None:
        return stop, max_tokens
    if isinstance(tokens_per_step, bool) or not isinstance(tokens_per_step, int) or tokens_per_step < 1:
        raise ValueError(f"tokens_per_step must be None or an integer of at least 1, got {tokens_per_step!r}")
    return (), tokens_per_step


class StepSample(NamedTuple):
    """A sampled step.

    :ivar Tensor tokens: ``[*lanes, max_tokens]``, padded with ``PAD``.
    :ivar Tensor log_probs: ``[*lanes]``, of the warped distribution that was sampled from; ``None`` where only ``step_log_prob`` can tell.
    """

    tokens: Tensor
    log_probs: Tensor | None


@runtime_checkable
class LanguageModel(Protocol):
    """A source of reasoning steps. Correctness never depends on a cache it keeps.

    :ivar int vocab_size: number of token ids.
    :ivar int max_length: longest context in tokens.
    :ivar Tensor eos_ids: token ids that end the text.
    :ivar bool enumerable: whether all steps can be listed (:class:`~ppl_llm.TabularLM`).
    """

    vocab_size: int
    max_length: int
    eos_ids: Tensor
    enumerable: bool

    @property
    def device(self) -> torch.device: ...

    def start(self, problem: Any) -> Context:
        """The context of a problem (a string or a list of chat messages), or a batch of them (a list of problems)."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without end-of-text tokens."""
        ...

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        """Recognises ``stop`` in a stream of tokens."""
        ...

    def sample_step(self, context: Context, lanes: torch.Size, options: StepOptions) -> StepSample:
        """Draw one step for each lane; ``context.batch_shape`` broadcasts to ``lanes``."""
        ...

    def step_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """Log-probability ``[*lanes]`` of steps ``[*lanes, max_tokens]`` under the warped distribution."""
        ...
