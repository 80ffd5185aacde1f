"""The state of a reasoning program: the tokens of a batch of sequences, as an immutable value."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .answers.extraction import FORMS
from .context_cache import CacheEntry, restored_entries, stored_entries
from .context_lm import ContextLM, mean_hidden_state
from .context_text import ContextText
from .finishing import finished_by
from .stop_reason import FINISHING, StopReason, stop_reasons
from .thinking import Thinking, closed, thought_until

PAD = -1
"""Padding of token tensors: never a token id."""

DEFAULT_STOP = "\n\n"

_TENSORS = ("problem_index", "tokens", "lengths", "prompt_lengths", "ends", "reasons", "done")
"""Fields of a context that have a batch shape."""


@dataclass(frozen=True, eq=False, repr=False)
class Context(ContextText):
    """Token contexts of a batch of sequences.

    :ivar Tensor tokens: ``[*batch_shape, L]``, right-padded with ``PAD``; prompt first.
    :ivar Tensor lengths: ``[*batch_shape]``, tokens of each sequence.
    :ivar Tensor ends: ``[*batch_shape, T]``, length of the sequence after each step; a finished sequence repeats its length.
    :ivar Tensor reasons: ``[*batch_shape, T]``, a :class:`StopReason` for each step.
    :ivar Tensor done: ``[*batch_shape]``, sequences that take no further step, see :attr:`finished`.
    :ivar int max_completion: tokens after the prompt at most; ``None`` for as many as the model's context holds.
    :ivar tuple answer_forms: the forms of answers that are looked for, see :func:`~ppl_llm.extract_answer`.
    :ivar tuple prefills: for each problem the answer that its prompt has begun; empty where none has.
    :ivar tuple final_stop: texts that end a sequence wherever they come, also across steps; they and what follows are no part of its text.
    :ivar Thinking thinking: how sequences think before they answer; ``None`` where they do not.
    """

    lm: ContextLM
    problems: tuple[str, ...]
    problem_index: Tensor
    tokens: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    ends: Tensor
    reasons: Tensor
    done: Tensor
    cache_entries: dict[Hashable, CacheEntry] = field(default_factory=dict)
    max_completion: int | None = None
    answer_forms: tuple[str, ...] = tuple(FORMS)
    prefills: tuple[str, ...] = ()
    final_stop: tuple[str, ...] = ()
    thinking: Thinking | None = None

    @classmethod
    def root(
        cls, lm: ContextLM, problems: tuple[str, ...], prompts: list[list[int]], batched: bool, prefills: tuple[str, ...] = ()
    ) -> Context:
        """A context that holds only prompts: one sequence (``batch_shape == ()``), or one per problem.

        :param list prompts: token ids of each problem's prompt.
        :param bool batched: whether the batch dimension of problems exists.
        :param prefills: for each problem the answer that its prompt has begun.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        tokens = torch.full((len(prompts), int(lengths.max())), PAD)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        no_steps = torch.zeros(len(prompts), 0, dtype=torch.long)
        context = cls(
            lm=lm,
            problems=problems,
            problem_index=torch.arange(len(prompts)),
            tokens=tokens,
            lengths=lengths,
            prompt_lengths=lengths,
            ends=no_steps,
            reasons=no_steps,
            done=torch.zeros(len(prompts), dtype=torch.bool),
            prefills=prefills if any(prefills) else (),
        )._map(lambda tensor: tensor.to(lm.device))
        return context if batched else context[0]

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of sequences; ``()`` for a single one."""
        return self.lengths.shape

    @property
    def longest(self) -> Tensor:
        """``[*batch_shape]``: longest length of each sequence, its prompt included."""
        longest = torch.full_like(self.prompt_lengths, self.lm.max_length)
        return longest if self.max_completion is None else torch.minimum(longest, self.prompt_lengths + self.max_completion)

    @property
    def limit(self) -> Tensor:
        """``[*batch_shape]``: the same, of the thinking for sequences that think: the next step goes no further."""
        return self.longest if self.thinking is None else self.thinking.limit(self)

    @property
    def inside(self) -> Tensor:
        """``[*batch_shape]``: sequences that think, and have not closed their thinking."""
        return torch.zeros_like(self.done) if self.thinking is None else ~closed(self.reasons).any(-1)

    @property
    def waits(self) -> Tensor:
        """``[*batch_shape]``: how many times the closing tag of the thinking was replaced."""
        return (self.reasons == StopReason.WAIT).sum(-1)

    @property
    def thinking_tokens(self) -> Tensor:
        """``[*batch_shape]``: length of the thinking so far, its closing tag included; 0 where there is none."""
        return torch.zeros_like(self.lengths) if self.thinking is None else thought_until(self) - self.prompt_lengths

    @property
    def num_steps(self) -> int:
        """Steps taken so far; the same number for all sequences."""
        return self.ends.shape[-1]

    @property
    def finished(self) -> Tensor:
        """``[*batch_shape]``: sequences that have come to their ends; others that are ``done`` were cut, as long as they may be."""
        return self.done & ~(self.reasons == StopReason.CONTEXT_FULL).any(-1)

    @property
    def step_starts(self) -> Tensor:
        """``[*batch_shape, T]``, length of the sequence before each step."""
        return torch.cat([self.prompt_lengths[..., None], self.ends], -1)[..., :-1]

    @property
    def advanced(self) -> Tensor:
        """``[*batch_shape]``: sequences that really took the last step, i.e. had not finished before it."""
        if self.num_steps == 0:
            return torch.zeros_like(self.done)
        return self.reasons[..., -1] != StopReason.FINISHED

    def extend(self, step: Tensor, stop: str | tuple[str, ...] = DEFAULT_STOP, finish: str | None = None) -> Context:
        """The context after one more step.

        The reason why the step ended follows from its tokens, so that a conditioned or replayed step gets the reason it had when it was
        sampled.

        :param Tensor step: ``[*batch_shape, max_tokens]``, padded with ``PAD``; the context is broadcast to ``batch_shape``.
        :param stop: the delimiter(s) the step was sampled with.
        :param str finish: a regular expression; a sequence whose step matches it is finished.
        """
        base = self.expand(torch.broadcast_shapes(step.shape[:-1], self.batch_shape))
        step = step.expand(*base.batch_shape, step.shape[-1]).to(base.tokens)
        rule, drawn = self.lm.stop_automaton(stop), (step != PAD).sum(-1)
        delimited, full = rule.accepts(step, rule.start(base)), base.lengths + drawn >= base.limit
        reason = stop_reasons(step, drawn, self.lm.eos_ids, delimited=delimited, full=full, done=base.done)
        if self.thinking is not None:
            step, reason = self.thinking.applied(base, step, reason)
        counts = (step != PAD).sum(-1)
        ended = base.lengths + counts
        width = int(ended.max())
        column = torch.arange(step.shape[-1], device=step.device)
        target = torch.where(column < counts[..., None], base.lengths[..., None] + column, width)
        tokens = torch.nn.functional.pad(base.tokens[..., :width], (0, max(0, width - base.tokens.shape[-1]) + 1), value=PAD)
        tokens = tokens.scatter(-1, target, torch.where(target == width, PAD, step))[..., :width]
        grown = replace(base, tokens=tokens, lengths=ended, ends=torch.cat([base.ends, ended[..., None]], -1))
        if finish is not None or self.final_stop:
            matches = finished_by(self.lm, tokens, (base.prompt_lengths, base.lengths, ended), finish, self.final_stop, base.inside)
            reason = torch.where(matches & (reason != StopReason.FINISHED) & (reason != StopReason.END_OF_TEXT), StopReason.PATTERN, reason)
        finishing = torch.isin(reason, torch.tensor(FINISHING, device=reason.device))
        return replace(grown, reasons=torch.cat([base.reasons, reason[..., None]], -1), done=base.done | finishing)

    def reorder(self, index: Tensor) -> Context:
        """Sequence ``i`` becomes a copy of sequence ``index[i]``.

        :param Tensor index: ``[K, *plates]``: ancestors along the leftmost batch dimension, one set for each plate index.
        """
        if len(self.batch_shape) < index.dim():
            return self  # not yet spread over particles: every sequence is the same
        plates = torch.broadcast_shapes(self.batch_shape[1:], index.shape[1:])
        source = index.expand(-1, *plates)

        def taken(tensor: Tensor) -> Tensor:
            event = tensor.shape[1 + len(plates) :]
            return tensor.gather(0, source.reshape(*source.shape, *(1 for _ in event)).expand(-1, *plates, *event).to(tensor.device))

        return self.expand(torch.Size([self.batch_shape[0], *plates]))._map(taken)

    def select_plate(self, dim: int, i: int) -> Context:
        """Index ``i`` of the batch dimension ``dim``."""
        return replace(self, cache_entries={})._map(lambda tensor: tensor.select(dim, i if self.batch_shape[dim] > 1 else 0))

    def concatenate(self, others: list[Context]) -> Context:
        """Sequences of several contexts of the same problems, along the leftmost batch dimension; a shorter run is padded with empty steps.

        :raises ValueError: for contexts of other problems.
        """
        contexts = [self, *others]
        if any(other.problems != self.problems for other in others):
            raise ValueError("contexts of different problems cannot be joined")
        width, num_steps = max(c.tokens.shape[-1] for c in contexts), max(c.num_steps for c in contexts)

        def widened(context: Context) -> Context:
            missing = num_steps - context.num_steps
            last = context.lengths[..., None].expand(*context.batch_shape, missing)
            pad = torch.nn.functional.pad
            return replace(
                context,
                cache_entries={},
                tokens=pad(context.tokens, (0, width - context.tokens.shape[-1]), value=PAD),
                ends=torch.cat([context.ends, last], -1),
                reasons=pad(context.reasons, (0, missing), value=StopReason.FINISHED),
            )

        wide = [widened(context) for context in contexts]
        tensors: dict[str, Any] = {name: torch.cat([getattr(c, name) for c in wide]) for name in _TENSORS}
        return replace(wide[0], **tensors)

    def expand(self, batch_shape: torch.Size | tuple[int, ...]) -> Context:
        """Broadcast to a larger batch of sequences; cache entries that do not fit are dropped."""
        batch_shape = torch.Size(batch_shape)
        kept = {key: entry for key, entry in self.cache_entries.items() if entry.fits(batch_shape)}
        if batch_shape == self.batch_shape:
            return replace(self, cache_entries=kept)
        ndim = len(self.batch_shape)
        grown = replace(self, cache_entries={})._map(lambda t: t.expand(*batch_shape, *t.shape[ndim:]))
        return replace(grown, cache_entries=kept)

    def before(self, step: int) -> Context:
        """As it was before a step. Of what backends keep only places in KV caches remain: scores are of steps that it does not have."""
        places = {key: entry for key, entry in self.cache_entries.items() if set(entry.tensors) == {"rows"}}
        starts, reasons = self.step_starts[..., step], self.reasons[..., :step]
        column = torch.arange(self.tokens.shape[-1], device=self.tokens.device)
        tokens = torch.where(column < starts[..., None], self.tokens, PAD)
        done = torch.isin(reasons, torch.tensor(FINISHING, device=reasons.device)).any(-1)
        ends = self.ends[..., :step]
        return replace(self, cache_entries=places, tokens=tokens, lengths=starts, ends=ends, reasons=reasons, done=done)

    def flat(self, sequences: Tensor) -> Context:
        """Sequences ``[A]``, flat indices, in a single batch dimension."""
        kept = {key: entry for key, entry in self.cache_entries.items() if entry.fits(self.batch_shape)}
        total, ndim = self.lengths.numel(), len(self.batch_shape)
        return replace(self, cache_entries=kept)._map(lambda t: t.reshape(total, *t.shape[ndim:])[sequences.to(t.device)])

    def __getitem__(self, sequence: int) -> Context:
        """One index of the leftmost batch dimension."""
        if not self.batch_shape:
            raise IndexError("this context holds a single sequence; there is no batch dimension to index")
        fitting = {key: entry for key, entry in self.cache_entries.items() if entry.fits(self.batch_shape)}
        return replace(self, cache_entries=fitting)._map(lambda tensor: tensor[sequence])

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("this context holds a single sequence and has no len()")
        return self.batch_shape[0]

    def compared(self) -> dict[str, Tensor]:
        """What tells contexts apart, for the audit; not how much longer sequences were that are dropped by now."""
        taken = (self.reasons != StopReason.FINISHED).reshape(self.lengths.numel(), self.num_steps).any(0).sum()
        steps = {"ends": self.ends[..., :taken], "reasons": self.reasons[..., :taken]}
        return {"tokens": self.tokens[..., : self.lengths.max()], "lengths": self.lengths, **steps, "done": self.done}

    def embedding(self) -> Tensor:
        """``[*batch_shape, H]``: the language model's mean hidden state over the last step, for searches by direction."""
        return mean_hidden_state(self.lm, self)

    def cache_state(self) -> dict[str, Any]:
        """What backends know of these sequences (keys and values, scores), as plain values and tensors."""
        return stored_entries(self.cache_entries)

    def restore_cache(self, state: dict[str, Any]) -> Context:
        """The same context with what :meth:`cache_state` gave in another process."""
        return replace(self, cache_entries=self.cache_entries | restored_entries(state))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Context:
        entries = {key: entry.map(fn) for key, entry in self.cache_entries.items()}
        tensors: dict[str, Any] = {name: fn(getattr(self, name)) for name in _TENSORS}
        return replace(self, cache_entries=entries, **tensors)

    def __repr__(self) -> str:
        shape = "single sequence" if not self.batch_shape else f"sequences {tuple(self.batch_shape)}"
        return f"Context({shape}, {self.num_steps} steps, {int(self.done.sum())} of {self.done.numel()} done)"
