"""The texts of a solution's steps, as process reward models read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..context import DEFAULT_STOP, Context
from ..stop_reason import FINISHING, StopReason

CUT = "\ufffd"
"""What an incomplete character is decoded to."""


class StepText(NamedTuple):
    """
    :ivar int number: of the step among those with text, those of an answer that the prompt has begun included.
    :ivar str text: whole characters; blank only where the solution ends with it and says nothing else.
    """

    number: int
    text: str


def begun_steps(prefill: str) -> tuple[list[str], str]:
    """The steps of an answer that the prompt has begun, and the beginning of the one that the language model continues."""
    *steps, rest = prefill.split(DEFAULT_STOP)
    return [step for step in steps if step.strip()], rest if rest.strip() else ""


def step_texts(context: Context, start: int, before: Tensor) -> list[list[StepText | None]]:
    """The steps from ``start`` on of each flat sequence: ``None`` for a step that was not taken, or that has no text.

    A solution that ends without having said anything has a step, an empty one.

    A step that begins or ends inside a character, which ``max_tokens`` can cut, gets the characters that are complete at its end.

    :param Tensor before: ``[*batch]``, how many of the steps before ``start`` have text.
    """
    flat = context.lengths.numel()
    columns = [context.tokens, context.step_starts, context.ends, context.reasons]
    columns += [each[..., None] for each in (context.prompt_lengths, context.problem_index, before.to(context.tokens))]
    widths = [each.shape[-1] for each in columns]
    # One copy to the host: each makes it wait for the device.
    copied = torch.cat([each.reshape(flat, width) for each, width in zip(columns, widths, strict=True)], -1).cpu()
    tokens, starts, ends, reasons, *single = (each.tolist() for each in copied.split(widths, -1))
    prompts, which, counts = ([value for (value,) in rows] for rows in single)
    begun = [begun_steps(context.prefill_of(p)) for p in range(len(context.problems))]
    decoded: dict[tuple[int, ...], str] = {}

    def decode(ids: list[int]) -> str:
        key = tuple(ids)
        if key not in decoded:
            decoded[key] = context.lm.decode(ids)
        return decoded[key]

    def text_of(sequence: int, t: int) -> str:
        row, prompt, begin, end = tokens[sequence], prompts[sequence], starts[sequence][t], ends[sequence][t]
        if begin == end:
            return ""
        text = decode(row[begin:end])
        if t and reasons[sequence][t - 1] == StopReason.LENGTH and decode(row[max(prompt, begin - 4) : begin]).endswith(CUT):
            whole = decode(row[prompt:begin]).rstrip(CUT)
            text = decode(row[prompt:end])[len(whole) :]
        return text.rstrip(CUT) if reasons[sequence][t] == StopReason.LENGTH else text

    found: list[list[StepText | None]] = []
    for sequence in range(flat):
        steps, rest = begun[which[sequence]]
        number, own = len(steps) + counts[sequence], list[StepText | None]()
        waiting, first = rest if counts[sequence] == 0 else "", len(steps)
        for t in range(start, context.num_steps):
            taken = ends[sequence][t] > starts[sequence][t]
            text = waiting + text_of(sequence, t) if taken else ""
            # A solution that ends before it has said anything is not passed over: it would be without any score, as if certainly right.
            empty = taken and number == first and reasons[sequence][t] in FINISHING
            if not text.strip() and not empty:
                own.append(None)
                continue
            own.append(StepText(number, text))
            number, waiting = number + 1, ""
        found.append(own)
    return found


def answer_text(context: Context, sequence: int, tokens: list[int]) -> str:
    """Everything that a flat sequence has answered, what the prompt has begun included; of a solution that thinks, what follows that.

    :param list tokens: that were sampled, up to the end of a step; a character that is not complete there is left out, but at the end of
        the solution.
    """
    written = int((context.lengths - context.prompt_lengths).flatten()[sequence])
    ended = bool(context.finished.flatten()[sequence]) and len(tokens) == written
    if context.thinking is not None:
        tokens = tokens[int(context.thinking_tokens.flatten()[sequence]) :]
    text = context.lm.decode(tokens)
    prefill = context.prefill_of(int(context.problem_index.flatten()[sequence]))
    return prefill + (text if ended else text.rstrip(CUT))


def text_before(context: Context, sequence: int, step: int) -> str:
    """The answer of a flat sequence up to a step; a character that is not complete there comes after it."""
    begin = int(context.step_starts.reshape(-1, context.num_steps)[sequence, step])
    tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[sequence, int(context.prompt_lengths.flatten()[sequence]) : begin]
    return answer_text(context, sequence, tokens.tolist()).rstrip(CUT)
