"""Budgets of thinking: a solution thinks before it answers, and its thinking is drawn out or closed (Muennighoff et al., s1, 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .context_lm import ContextLM
from .finishing import before_any
from .inference.util.validation import check_count, check_optional_count
from .stop_reason import StopReason

CLOSE, WAIT = "</think>", "Wait"
"""The tag that closes the thinking of published models, and what s1 writes in its place."""

THOUGHT = (StopReason.CLOSE, StopReason.BUDGET)
"""Reasons after which a sequence thinks no more."""


@dataclass(frozen=True)
class Thinking:
    """Solutions begin with thinking, which a tag closes. The step that a language model draws is changed by a map without randomness:

    - a step of thinking that ends in the tag has ``wait`` in its place, up to ``waits`` times in a solution, while there is room;
    - thinking that is ``max_thinking`` tokens long has the tag written behind it.

    The distribution of a solution is the language model's pushed through this map: the log-probability of a step is that of what was drawn.

    :param str close: the closing tag.
    :param int waits: how many times it is replaced.
    :param str wait: the replacement.
    :param int max_thinking: tokens of thinking at most, the tag not counted; ``None`` for as many as a solution may have.
    :raises ValueError: for values out of range.
    """

    close: str = CLOSE
    waits: int = 0
    wait: str = WAIT
    max_thinking: int | None = None

    def __post_init__(self) -> None:
        for name in ("close", "wait"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be a non-empty string, got {getattr(self, name)!r}")
        check_count("waits", self.waits, 0)
        check_optional_count("max_thinking", self.max_thinking)
        if self.close in self.wait:
            raise ValueError(f"wait={self.wait!r} has the closing tag {self.close!r} in it, so that thinking would be closed all the same")

    def check_room(self, room: int, tag: int = 1) -> None:
        """
        :param int room: tokens of a solution at most.
        :param int tag: tokens of the closing tag, at least.
        :raises ValueError: for more waits than a solution has tokens, or thinking that leaves no room for an answer.
        """
        if self.waits > room:
            raise ValueError(f"waits must be at most {room}, the tokens of a solution, each wait takes one or more; got {self.waits}")
        if self.max_thinking is not None and self.max_thinking + tag >= room:
            raise ValueError(
                f"max_thinking must leave room for the closing tag and an answer within the {room} tokens of a solution "
                f"(the tag: {tag} or more), got {self.max_thinking}"
            )

    def check(self, lm: Any, max_tokens: int, max_completion: int | None) -> None:
        """
        :param int max_tokens: of a step.
        :param int max_completion: of a solution.
        :raises ValueError: for a language model that cannot write the texts, or where they do not fit.
        """
        tag = len(written(lm, self.close, "close"))
        if self.waits and max_tokens < tag:
            raise ValueError(f"waits needs steps that hold the whole closing tag, {tag} tokens of {type(lm).__name__}, got {max_tokens}")
        if self.waits:
            written(lm, self.wait, "wait")
        room = lm.max_length if max_completion is None else max_completion
        self.check_room(room, tag)

    def limit(self, context: Any) -> Tensor:
        """``[*batch_shape]``: length that the next step of each sequence may reach."""
        longest: Tensor = context.longest
        if self.max_thinking is None:
            return longest
        return torch.where(context.inside, torch.minimum(longest, context.prompt_lengths + self.max_thinking), longest)

    def applied(self, base: Any, step: Tensor, reasons: Tensor) -> tuple[Tensor, Tensor]:
        """The map: steps ``[*batch_shape, M']`` as they are written into a context, and why they ended.

        :param Context base: before the step, ``[*batch_shape]``.
        :param Tensor step: ``[*batch_shape, M]``, as it was drawn.
        :param Tensor reasons: ``[*batch_shape]``, why it ended.
        """
        inside = base.inside & (reasons != StopReason.FINISHED)
        rule = base.lm.stop_automaton(self.close)
        closes = inside & rule.accepts(step, rule.start(base))
        # Not of sequences that the end of the text or a lack of room for an answer has finished.
        over = inside & ~closes & (reasons == StopReason.CONTEXT_FULL)
        cut = inside & ~closes & ~over & _after_a_cut(base)
        reasons = torch.where(closes, StopReason.CLOSE, reasons)
        rows = {tuple(each) for each in (closes | over | cut).nonzero().tolist()} if bool((closes | over | cut).any()) else set()
        if not rows:
            return step, reasons
        changed: dict[tuple[int, ...], list[int]] = {}
        reasons = reasons.clone()
        tag, rewritten = written(base.lm, self.close, "close"), dict[tuple[int, ...], list[int]]()
        steps, lengths, waits, limits, longest = (each.cpu() for each in (step, base.lengths, base.waits, base.limit, base.longest))
        for row in rows:
            drawn = [token for token in steps[row].tolist() if token >= 0]
            before, most = int(lengths[row]), int(longest[row])
            if bool(cut[row]):
                if self._ends_across(base, row, drawn):
                    reasons[row] = StopReason.CLOSE
            elif bool(over[row]):
                if before + len(drawn) + len(tag) < most:
                    changed[row], reasons[row] = [*drawn, *tag], StopReason.BUDGET
            elif int(waits[row]) < self.waits:
                if tuple(drawn) not in rewritten:
                    rewritten[tuple(drawn)] = self._with_wait(base.lm, drawn)
                grown = rewritten[tuple(drawn)]
                if before + len(grown) < int(limits[row]):
                    changed[row], reasons[row] = grown, StopReason.WAIT
            if reasons[row] == StopReason.CLOSE and before + len(drawn) >= most:
                reasons[row] = StopReason.CONTEXT_FULL
        width = max([step.shape[-1], *map(len, changed.values())])
        step = torch.nn.functional.pad(step, (0, width - step.shape[-1]), value=-1)
        for row, grown in changed.items():
            step[row] = torch.tensor([*grown, *[-1] * (width - len(grown))], device=step.device)
        return step, reasons

    def _with_wait(self, lm: Any, drawn: list[int]) -> list[int]:
        """A step that ends in the tag with ``wait`` in its place; what follows the tag inside of its last token goes with it."""
        rule = lm.stop_automaton(self.close)
        size = next(n for n in range(1, len(drawn) + 1) if bool(rule.accepts(torch.tensor(drawn[-n:], device=lm.device))))
        text = lm.decode(drawn[-size:])  # with what the tag's first token may hold before it
        return [*drawn[:-size], *written(lm, text.partition(self.close)[0] + self.wait, "wait")]

    def _ends_across(self, base: Any, row: tuple[int, ...], drawn: list[int]) -> bool:
        """Whether a step has the end of a tag that ``max_tokens`` has cut in two."""
        before, prompt = int(base.lengths[row]), int(base.prompt_lengths[row])
        known = base.tokens[row][max(prompt, before - len(self.close.encode())) : before].tolist()
        return self.close in base.lm.decode([*known, *drawn])


def written(lm: Any, text: str, name: str) -> list[int]:
    """Token ids of a text.

    :param str name: of the option that it is, for the message.
    :raises ValueError: for a language model that cannot write it.
    """
    encode = getattr(lm, "encode", None)
    if encode is None:
        raise ValueError(f"{name}={text!r} cannot be written: {type(lm).__name__} has no encode(text), which thinking budgets need")
    try:
        ids: list[int] = encode(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} cannot be written: {error}") from error
    return ids


def closed(reasons: Tensor) -> Tensor:
    """Which steps have closed the thinking, ``[*batch_shape, T]``."""
    return torch.isin(reasons, torch.tensor(THOUGHT, device=reasons.device))


def thought_until(context: Any) -> Tensor:
    """``[*batch_shape]``: length of each sequence where its thinking is closed, or so far."""
    ends: Tensor = torch.where(closed(context.reasons), context.ends, 0).sum(-1)
    return torch.where(context.inside, context.lengths, ends)


def answered(sequence: Any) -> str | None:
    """The text of one sequence after its thinking, up to a final stop; ``None`` while it thinks."""
    steps = closed(sequence.reasons).nonzero()
    if not len(steps):
        return None
    lm: ContextLM = sequence.lm
    close, end = sequence.thinking.close, int(sequence.ends[steps[0, 0]])
    # The tag may be a special token, without a text; what follows it inside of its last token is of the answer; and it may have begun
    # in the step before.
    begin = max(int(sequence.prompt_lengths), int(sequence.step_starts[steps[0, 0]]) - len(close.encode()))
    rest = lm.decode(sequence.tokens[begin:end].tolist()).rpartition(close)
    text = (rest[2] if rest[1] else "") + lm.decode(sequence.tokens[end : int(sequence.lengths)].tolist())
    return before_any(text, sequence.final_stop)


def _after_a_cut(base: Any) -> Tensor:
    """``[*batch_shape]``: sequences whose step before was cut by ``max_tokens``."""
    if base.num_steps == 0:
        return torch.zeros_like(base.done)
    found: Tensor = base.reasons[..., -1] == StopReason.LENGTH
    return found
