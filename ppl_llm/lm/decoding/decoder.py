"""The parts that sample a step, and what passes between them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...context import PAD, Context
from ..base import StepOptions
from ..stopping import StopAutomaton
from ..token_figures import TokenFigure

if TYPE_CHECKING:  # a table of tokens must not wait for transformers
    from ...kv_cache.hidden import HiddenForward


class StepTask(NamedTuple):
    """A step to be sampled for some sequences of a batch of N.

    :ivar Context context: of the batch; its cache entries are updated.
    :ivar Tensor active: ``[A]`` flat indices of the sequences that take the step.
    :ivar Tensor watch: ``[N]`` state of the automaton where each step begins.
    :ivar Tensor eos_ids: token ids that end the text.
    :ivar Tensor room: ``[N]`` tokens that each sequence may take.
    :ivar Tensor uniforms: ``[N, M]``, one for each token.
    :ivar Tensor tokens: ``[N, M]`` and ``log_probs [N]`` in float64, filled in at ``active``.
    :ivar tuple figures: of the tokens, whose ``values [N, M, F]`` in float64 are filled in as well; F may be 0.
    :ivar Tensor temperatures: ``[N]``, where each sequence has its own; that of the options is 1 then.
    """

    context: Context
    active: Tensor
    options: StepOptions
    automaton: StopAutomaton
    watch: Tensor
    eos_ids: Tensor
    room: Tensor
    uniforms: Tensor
    tokens: Tensor
    log_probs: Tensor
    figures: tuple[TokenFigure, ...]
    values: Tensor
    temperatures: Tensor | None = None


class Decoder(Protocol):
    """Next-token logits of a shrinking set of sequences.

    :ivar Tensor sequences: ``[A]`` flat index of each row's sequence.
    :ivar pending: tokens ``[A]`` that the first :meth:`advance` is to append before there are logits, ``None`` where there are.
    :ivar Tensor logits: ``[A, V]`` logits of each row's next token; sampling overwrites them.
    """

    sequences: Tensor
    pending: Tensor | None
    logits: Tensor

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Append ``tokens [A]`` where ``alive [A]`` and compute the next logits; other rows may hold anything afterwards."""
        ...

    def keep(self, alive: Tensor) -> None:
        """Drop the rows that are not alive. Rows may change places, ``sequences`` with them. ``logits`` are void until :meth:`advance`."""
        ...

    def reserved(self) -> AbstractContextManager[None]:
        """While a step is in progress, with other programs running in between, nobody else may use its memory."""
        ...


class LogitsSource(Protocol):
    """Where the logits of a language model come from."""

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Teacher-forced logits in chunks.

        :param Context context: expanded to all sequences; its cache entries are updated.
        :param Tensor active: ``[A]`` flat indices of sequences.
        :param Tensor tokens: ``[A, M]`` the step of each of them, padded with ``PAD``.
        :returns: pairs of rows ``[a]`` (indices into ``active``) and logits ``[a, M, V]`` of each of the step's tokens.
        """
        ...

    def release(self) -> None:
        """Free the memory that no correct result depends on."""
        ...


class StatesSource(Protocol):
    """One that gives the hidden states of its network, too.

    :ivar HiddenForward hidden: the network up to its head.
    """

    hidden: HiddenForward

    def hidden_states(self, context: Context, active: Tensor, positions: Tensor) -> Tensor:
        """States ``[A, K, H]`` float32 at positions ``[A, K]`` of sequences ``active [A]``, flat indices of ``context``, which is expanded
        to all sequences; negative positions, of which no sequence has nothing else, are void."""
        ...


class DecoderSource(LogitsSource, Protocol):
    """One whose sequences are continued token by token."""

    def decoder(self, context: Context, active: Tensor, wait: bool = False) -> Decoder:
        """A decoder for the sequences ``active [A]``, flat indices of ``context``, which is expanded to all sequences.

        :param bool wait: where nothing but the last token of each sequence has to be run, leave that to the first ``advance``.
        """
        ...


class Sampler(Protocol):
    """
    :ivar bool batches_programs: whether the steps of several programs are sampled in one batch.
    """

    batches_programs: bool

    def sample(self, task: StepTask) -> None:
        """Fill in the tokens and log-probabilities of a step."""
        ...


class DecodeRequest(NamedTuple):
    """The next token wanted for some sequences: a forward pass, and a draw from its logits.

    :ivar Decoder decoder: theirs.
    :ivar tokens: ``[A]`` and ``alive [A]`` of :meth:`Decoder.advance`, ``None`` where the decoder has the logits already.
    :ivar Tensor uniforms: ``[A]``, for the draw.
    :ivar tuple figures: wanted of each token.
    :ivar Tensor temperatures: ``[A]``, where each sequence has its own.
    """

    decoder: Any
    tokens: Tensor | None
    alive: Tensor
    uniforms: Tensor
    options: StepOptions
    figures: tuple[TokenFigure, ...] = ()
    temperatures: Tensor | None = None


class Draw(NamedTuple):
    """Tokens ``[A]``, their log-probabilities ``[A]``, and the figures ``[A, F]`` that were wanted."""

    tokens: Tensor
    log_probs: Tensor
    figures: Tensor


DecodeRequests = Generator[DecodeRequest, Draw, None]
"""A step in progress: each request is answered by a draw."""


def with_steps(context: Context, active: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences with given steps ``[A, M]`` but for the last token, whose logits nobody needs.

    :returns: tokens ``[A, L]`` padded with ``PAD``, lengths before the step ``[A]``, and lengths ``[A]``.
    """
    before = context.lengths.flatten()[active]
    ends = before + (tokens != PAD).sum(-1) - 1
    whole = torch.nn.functional.pad(context.tokens.reshape(-1, context.tokens.shape[-1])[active], (0, tokens.shape[1] + 1), value=PAD)
    column = torch.arange(tokens.shape[1], device=tokens.device)
    whole.scatter_(1, torch.where(tokens == PAD, whole.shape[1] - 1, before[:, None] + column), tokens)
    return torch.where(torch.arange(whole.shape[1], device=whole.device) < ends[:, None], whole, PAD), before, ends
