"""What a language model offers to the distributions."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..constraints.base import Constraint
from ..context import DEFAULT_STOP, Context
from ..context_lm import ContextLM
from ..inference.util.checked import check_fields, describe
from ..inference.util.validation import check_count, check_optional_count
from .markdown import MARKDOWN
from .stop_pattern import StopPattern, position_pattern
from .stopping import StopAutomaton


@dataclass(frozen=True)
class StepOptions:
    """How one step is sampled.

    :param stop: delimiter string(s) that end a step and belong to it, e.g. ``("\\n\\n", "</think>")``, or
        :class:`~ppl_llm.StopPattern`; ``markdown`` for blank lines outside of code fences and display mathematics; ``()`` for none, so that
        every step takes ``max_tokens``, unless the text or the model's context ends before.
    :param int max_tokens: longest step; one that reaches it ends with reason ``LENGTH``.
    :param float temperature: divides the logits.
    :param float top_p: nucleus mass kept, after ``top_k``.
    :param int top_k: number of tokens kept.
    :param Constraint constraint: on what follows the prompt; each token is drawn from the warped distribution restricted to what may
        follow, and renormalised. A step after which nothing may follow ends there.
    :raises ValueError: if a value is of a wrong type or out of range.
    """

    stop: str | tuple[str, ...] = DEFAULT_STOP
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, tuple) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop must be a non-empty string or a tuple of them, got {self.stop!r}")
        for stop in stops:
            if stop != MARKDOWN and get_close_matches(stop.lower(), [MARKDOWN], cutoff=0.8):
                raise ValueError(f"stop {stop!r} is a delimiter that no text has; did you mean {MARKDOWN!r}?")
        check_count("max_tokens", self.max_tokens)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}; for nearly greedy steps use a small one, e.g. 0.01")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}")
        check_optional_count("top_k", self.top_k)

    @property
    def stops(self) -> list[str]:
        """The delimiters as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def stop_strings(self) -> list[str]:
        """The delimiters that are strings, which a server can look for."""
        return [stop for stop in self.stops if stop != MARKDOWN and not isinstance(stop, StopPattern)]

    @property
    def plain(self) -> bool:
        """Whether steps are drawn from the model itself: temperature 1, every token kept, no constraint."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k is None and self.constraint is None


def stop_at(every: str) -> str | tuple[str, ...]:
    """The ``stop`` of steps from position to position of a text; for ``token`` there is none, and steps have one token.

    :param str every: ``token``, ``word``, ``line`` or a regular expression.
    :raises ValueError: if it is no pattern.
    """
    if every == "token":
        return ()
    try:
        return StopPattern(position_pattern(every))
    except ValueError as error:
        raise ValueError(f"every={every!r}: {error}") from error


def step_limits(
    stop: str | tuple[str, ...], max_tokens: int, tokens_per_step: int | None, every: str | None = None
) -> tuple[str | tuple[str, ...], int]:
    """``stop`` and ``max_tokens``, or those of steps of a fixed number of tokens, which no delimiter ends, or of steps from position to
    position of a text.

    :param str every: ``token``, ``word``, ``line`` or a regular expression.
    :raises ValueError: if ``tokens_per_step`` is out of range, ``every`` is no pattern, or more than one of them says where steps end.
    """
    if every is not None:
        if tokens_per_step is not None or stop != DEFAULT_STOP:
            raise ValueError(f"every={every!r} says where steps end; leave out stop and tokens_per_step")
        return stop_at(every), 1 if every == "token" else max_tokens
    if tokens_per_step is None:
        return stop, max_tokens
    check_count("tokens_per_step", tokens_per_step)
    return (), tokens_per_step


class StepSample(NamedTuple):
    """A sampled step.

    :ivar Tensor tokens: ``[*batch_shape, max_tokens]``, padded with ``PAD``.
    :ivar Tensor log_probs: ``[*batch_shape]``, of the warped distribution that was sampled from; ``None`` where only ``step_log_prob`` can
        tell.
    """

    tokens: Tensor
    log_probs: Tensor | None


class ConstrainedSample(NamedTuple):
    """A step drawn from a language model restricted by a constraint.

    :ivar Tensor tokens: ``[*batch_shape, max_tokens]``, padded with ``PAD``.
    :ivar Tensor log_probs: ``[*batch_shape]`` float64, of the restricted model.
    :ivar Tensor log_masses: ``[*batch_shape]`` float64: the log of the product, over the step's tokens, of the mass of what may follow
        under the unrestricted model; -inf where the step ends because nothing may. Or of an unbiased estimate of the product, where the
        constraint has to be asked of single tokens: then ``log_probs + log_masses`` still is the log-probability under the unrestricted
        model.
    """

    tokens: Tensor
    log_probs: Tensor
    log_masses: Tensor


@runtime_checkable
class LanguageModel(ContextLM, Protocol):
    """A source of reasoning steps. Correctness never depends on a cache it keeps.

    :ivar bool enumerable: whether all steps can be listed (:class:`~ppl_llm.TabularLM`).
    """

    enumerable: bool

    def start(self, problem: Any) -> Context:
        """The context of a problem (a string or a list of chat messages), or a batch of them (a list of problems)."""
        ...

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        """Recognises ``stop`` in a stream of tokens."""
        ...

    def sample_step(self, context: Context, batch_shape: torch.Size, options: StepOptions) -> StepSample:
        """Draw one step for each sequence; ``context.batch_shape`` broadcasts to ``batch_shape``."""
        ...

    def step_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """Log-probability ``[*batch_shape]`` of steps ``[*batch_shape, max_tokens]`` under the warped distribution."""
        ...


describe("LanguageModel", "a language model, e.g. TransformersLM.from_pretrained('demo')")


def language_model(context: Context) -> LanguageModel:
    """The language model of a context, which asks less of it than a step does."""
    return cast(LanguageModel, context.lm)


class ConstrainableLM(Protocol):
    """A language model that tells the mass of what a constraint allows."""

    def sample_constrained(self, context: Context, batch_shape: torch.Size, options: StepOptions) -> ConstrainedSample:
        """Draw one step under ``options.constraint`` for each sequence."""
        ...


def constrainable(lm: Any) -> ConstrainableLM:
    """
    :raises TypeError: for a language model that does not tell how much of its mass a constraint allows.
    """
    if not hasattr(lm, "sample_constrained"):
        raise TypeError(
            f"{type(lm).__name__} does not tell the mass of the tokens that a constraint allows, so particles cannot be weighed: it "
            "takes the logits of a TransformersLM or a TabularLM"
        )
    return cast(ConstrainableLM, lm)


class HiddenStatesLM(LanguageModel, Protocol):
    """A language model that gives the hidden states of its network.

    :ivar int hidden_size: numbers in a state.
    :ivar str identity: tells its network from others, wherever it was loaded from.
    """

    @property
    def hidden_size(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def hidden_states(self, context: Context, positions: Tensor) -> Tensor:
        """States ``[*batch_shape, K, H]`` at positions ``[*batch_shape, K]``, see :meth:`ppl_llm.TransformersLM.hidden_states`."""
        ...


def with_hidden_states(lm: Any, user: str) -> HiddenStatesLM:
    """
    :param str user: who needs them, for the message.
    :raises ValueError: for a language model that gives none.
    """
    if not hasattr(lm, "identity"):
        raise ValueError(f"{type(lm).__name__} gives no hidden states, and {user} reads them: it needs a local network, a TransformersLM")
    return cast(HiddenStatesLM, lm)
