"""The state of a reasoning program: the tokens of a batch of lanes, as an immutable value."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .answers.voting import extract_answer
from .context_cache import stored, waiting

if TYPE_CHECKING:
    from .lm.base import LanguageModel

PAD = -1
"""Padding of token tensors: never a token id."""

DEFAULT_STOP = "\n\n"


class StopReason(IntEnum):
    """Why a step ended."""

    FINISHED = 0
    """The lane had finished before this step; the step is empty."""
    DELIMITER = 1
    END_OF_TEXT = 2
    LENGTH = 3
    """``max_tokens`` was reached; the lane goes on."""
    CONTEXT_FULL = 4
    """The model's context is full; the lane is finished."""
    PATTERN = 5
    """The step's text matched ``finish``; the lane is finished."""


@dataclass(frozen=True)
class LaneMemo:
    """What a backend notes beside a context to find its caches again. Never needed for a correct result.

    :param owner: anything, e.g. a weak reference to a cache.
    :param dict lanes: tensors of shape ``[*batch, ...]``, carried along by every operation on the context.
    """

    owner: Any
    lanes: dict[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Context:
    """Token contexts of a batch of lanes.

    :ivar Tensor tokens: ``[*batch, L]``, right-padded with ``PAD``; prompt first.
    :ivar Tensor lengths: ``[*batch]``, tokens of each lane.
    :ivar Tensor ends: ``[*batch, T]``, length of the lane after each step; a finished lane repeats its length.
    :ivar Tensor reasons: ``[*batch, T]``, a :class:`StopReason` for each step.
    :ivar Tensor done: ``[*batch]``, lanes that have finished.
    """

    lm: LanguageModel
    problems: tuple[str, ...]
    problem_index: Tensor
    tokens: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    ends: Tensor
    reasons: Tensor
    done: Tensor
    memo: dict[Hashable, LaneMemo] = field(default_factory=dict)

    @classmethod
    def root(cls, lm: LanguageModel, problems: tuple[str, ...], prompts: list[list[int]], batched: bool) -> Context:
        """A context that holds only prompts: one lane (``batch_shape == ()``), or one per problem.

        :param list prompts: token ids of each problem's prompt.
        :param bool batched: whether the batch dimension of problems exists.
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
        )._map(lambda tensor: tensor.to(lm.device))
        return context if batched else context[0]

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of lanes; ``()`` for a single one."""
        return self.lengths.shape

    @property
    def num_steps(self) -> int:
        """Steps taken so far; all lanes run in lockstep."""
        return self.ends.shape[-1]

    @property
    def step_starts(self) -> Tensor:
        """``[*batch, T]``, length of the lane before each step."""
        return torch.cat([self.prompt_lengths[..., None], self.ends], -1)[..., :-1]

    @property
    def advanced(self) -> Tensor:
        """``[*batch]``: lanes that really took the last step, i.e. had not finished before it."""
        if self.num_steps == 0:
            return torch.zeros_like(self.done)
        return self.reasons[..., -1] != StopReason.FINISHED

    def extend(self, step: Tensor, stop: str | tuple[str, ...] = DEFAULT_STOP, finish: str | None = None) -> Context:
        """The context after one more step.

        The reason why the step ended follows from its tokens, so that a conditioned or replayed step gets the reason it had when it was
        sampled.

        :param Tensor step: ``[*lanes, max_tokens]``, padded with ``PAD``; the context is broadcast to ``lanes``.
        :param stop: the delimiter(s) the step was sampled with.
        :param str finish: a regular expression; a lane whose step matches it is finished.
        """
        lanes = step.shape[:-1]
        base = self.expand(torch.broadcast_shapes(lanes, self.batch_shape))
        step = step.expand(*base.batch_shape, step.shape[-1]).to(base.tokens)
        counts = (step != PAD).sum(-1)
        ended = base.lengths + counts
        width = int(ended.max())
        column = torch.arange(step.shape[-1], device=step.device)
        target = torch.where(column < counts[..., None], base.lengths[..., None] + column, width)
        tokens = torch.nn.functional.pad(base.tokens[..., :width], (0, max(0, width - base.tokens.shape[-1]) + 1), value=PAD)
        tokens = tokens.scatter(-1, target, torch.where(target == width, PAD, step))[..., :width]
        reason = self._reasons(base, step, counts, ended, stop)
        grown = replace(base, tokens=tokens, lengths=ended, ends=torch.cat([base.ends, ended[..., None]], -1))
        if finish is not None:
            matches = torch.zeros_like(reason, dtype=torch.bool)
            for lane, start, end in grown._lane_ranges(base.lengths, ended):
                matches[lane] = bool(re.search(finish, self.lm.decode(tokens[lane][start:end].tolist())))
            reason = torch.where(matches & (reason != StopReason.FINISHED) & (reason != StopReason.END_OF_TEXT), StopReason.PATTERN, reason)
        finishing = (reason == StopReason.END_OF_TEXT) | (reason == StopReason.CONTEXT_FULL) | (reason == StopReason.PATTERN)
        return replace(grown, reasons=torch.cat([base.reasons, reason[..., None]], -1), done=base.done | finishing)

    @staticmethod
    def _reasons(base: Context, step: Tensor, counts: Tensor, ended: Tensor, stop: str | tuple[str, ...]) -> Tensor:
        last = step.gather(-1, (counts - 1).clamp(min=0)[..., None])[..., 0]
        reason = torch.where(counts == step.shape[-1], StopReason.LENGTH, StopReason.DELIMITER)
        delimited = base.lm.stop_automaton(stop).accepts(step)
        reason = torch.where(delimited, StopReason.DELIMITER, reason)
        reason = torch.where(ended >= base.lm.max_length, StopReason.CONTEXT_FULL, reason)
        reason = torch.where(torch.isin(last, base.lm.eos_ids), StopReason.END_OF_TEXT, reason)
        return torch.where(base.done | (counts == 0), StopReason.FINISHED, reason)

    def reorder(self, index: Tensor) -> Context:
        """Lane ``i`` becomes a copy of lane ``index[i]``.

        :param Tensor index: ``[K, *plates]``: ancestors along the leftmost batch dimension, one set for each plate index.
        """
        if len(self.batch_shape) < index.dim():
            return self  # not yet spread over particles: every lane is the same
        plates = torch.broadcast_shapes(self.batch_shape[1:], index.shape[1:])
        lanes = index.expand(-1, *plates)

        def taken(tensor: Tensor) -> Tensor:
            event = tensor.shape[1 + len(plates) :]
            return tensor.gather(0, lanes.reshape(*lanes.shape, *(1 for _ in event)).expand(-1, *plates, *event).to(tensor.device))

        return self.expand(torch.Size([self.batch_shape[0], *plates]))._map(taken)

    def select_plate(self, dim: int, i: int) -> Context:
        """Index ``i`` of the batch dimension ``dim``."""
        return replace(self, memo={})._map(lambda tensor: tensor.select(dim, i if self.batch_shape[dim] > 1 else 0))

    def concatenate(self, others: list[Context]) -> Context:
        """Lanes of several contexts of the same problems, along the leftmost batch dimension; a shorter run is padded with empty steps.

        :raises ValueError: for contexts of other problems.
        """
        contexts = [self, *others]
        if any(other.problems != self.problems for other in others):
            raise ValueError("contexts of different problems cannot be joined")
        width, rounds = max(c.tokens.shape[-1] for c in contexts), max(c.num_steps for c in contexts)

        def widened(context: Context) -> Context:
            missing = rounds - context.num_steps
            last = context.lengths[..., None].expand(*context.batch_shape, missing)
            pad = torch.nn.functional.pad
            return replace(
                context,
                memo={},
                tokens=pad(context.tokens, (0, width - context.tokens.shape[-1]), value=PAD),
                ends=torch.cat([context.ends, last], -1),
                reasons=pad(context.reasons, (0, missing), value=StopReason.FINISHED),
            )

        wide = [widened(context) for context in contexts]
        return replace(
            wide[0],
            problem_index=torch.cat([c.problem_index for c in wide]),
            tokens=torch.cat([c.tokens for c in wide]),
            lengths=torch.cat([c.lengths for c in wide]),
            prompt_lengths=torch.cat([c.prompt_lengths for c in wide]),
            ends=torch.cat([c.ends for c in wide]),
            reasons=torch.cat([c.reasons for c in wide]),
            done=torch.cat([c.done for c in wide]),
        )

    def expand(self, batch_shape: torch.Size | tuple[int, ...]) -> Context:
        """Broadcast to a larger batch of lanes; notes that do not fit are forgotten."""
        batch_shape = torch.Size(batch_shape)

        def fits(memo: LaneMemo) -> bool:
            shapes = [tensor.shape for tensor in memo.lanes.values()]
            return all(shape[: len(batch_shape)] == batch_shape for shape in shapes)

        kept = {key: memo for key, memo in self.memo.items() if fits(memo)}
        if batch_shape == self.batch_shape:
            return replace(self, memo=kept)
        ndim = len(self.batch_shape)
        grown = replace(self, memo={})._map(lambda t: t.expand(*batch_shape, *t.shape[ndim:]))
        return replace(grown, memo=kept)

    def __getitem__(self, lane: int) -> Context:
        """One index of the leftmost batch dimension."""
        if not self.batch_shape:
            raise IndexError("this context holds a single lane; there is no batch dimension to index")
        fitting = {
            k: m for k, m in self.memo.items() if all(t.shape[: len(self.batch_shape)] == self.batch_shape for t in m.lanes.values())
        }
        return replace(self, memo=fitting)._map(lambda tensor: tensor[lane])

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("this context holds a single lane and has no len()")
        return self.batch_shape[0]

    def cache_state(self) -> dict[str, Any]:
        """What backends know of these lanes (keys and values, scores), as plain values and tensors."""
        return stored(self.memo)

    def restore_cache(self, notes: dict[str, Any]) -> Context:
        """The same context with what :meth:`cache_state` gave in another process."""
        memo = {key: LaneMemo(owner, lanes) for key, (owner, lanes) in waiting(notes).items()}
        return replace(self, memo={**self.memo, **memo})

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Context:
        memo = {key: replace(m, lanes={name: fn(tensor) for name, tensor in m.lanes.items()}) for key, m in self.memo.items()}
        return replace(
            self,
            memo=memo,
            problem_index=fn(self.problem_index),
            tokens=fn(self.tokens),
            lengths=fn(self.lengths),
            prompt_lengths=fn(self.prompt_lengths),
            ends=fn(self.ends),
            reasons=fn(self.reasons),
            done=fn(self.done),
        )

    def _lane_ranges(self, start: Tensor, end: Tensor) -> list[tuple[tuple[int, ...], int, int]]:
        lanes = [tuple(lane) for lane in torch.ones(self.batch_shape).nonzero().tolist()]
        return list(zip(lanes, start.flatten().tolist(), end.flatten().tolist(), strict=True))

    def _nested(self, fn: Callable[[Context], Any]) -> Any:
        return [self[i]._nested(fn) for i in range(len(self))] if self.batch_shape else fn(self)

    @property
    def problem(self) -> Any:
        """The problem's text; nested lists over the batch shape."""
        return self._nested(lambda lane: self.problems[int(lane.problem_index)])

    @property
    def text(self) -> Any:
        """What was generated after the prompt; nested lists over the batch shape."""
        return self._nested(lambda lane: self.lm.decode(lane.tokens[int(lane.prompt_lengths) : int(lane.lengths)].tolist()))

    @property
    def steps(self) -> Any:
        """The steps really taken, each a string; nested lists over the batch shape."""

        def split(lane: Context) -> list[str]:
            bounds = [int(lane.prompt_lengths), *lane.ends.tolist()]
            tokens = lane.tokens.tolist()
            return [self.lm.decode(tokens[a:b]) for a, b in itertools.pairwise(bounds) if b > a]

        return self._nested(split)

    def describe(self, value: Tensor) -> str | None:
        """The text of one value ``[max_tokens]`` of an :class:`LLMStep`; ``None`` for what cannot be one."""
        if value.dim() != 1 or value.is_floating_point() or bool((value >= self.lm.vocab_size).any()):
            return None
        return self.lm.decode(value[value != PAD].tolist())

    def answers(self) -> Any:
        """The answer extracted from each lane's text, ``None`` where there is none; nested lists over the batch shape."""
        return self._nested(lambda lane: extract_answer(lane.text))

    def __repr__(self) -> str:
        shape = "single lane" if not self.batch_shape else f"lanes {tuple(self.batch_shape)}"
        return f"Context({shape}, {self.num_steps} steps, {int(self.done.sum())} of {self.done.numel()} done)"
