"""Log-probabilities of texts that are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..context import Context
from ..lm.base import LanguageModel, StepOptions


def teacher_forced(lm: LanguageModel, pairs: Sequence[tuple[list[int], list[int]]], at_once: int = 64) -> list[tuple[float, bool]]:
    """Log-probability of each continuation under the language model itself, and whether it is the greedy one.

    :param pairs: token ids of what stands before, at least one, and of the continuation. Where both are longer than the model's context,
        the oldest tokens before give way.
    :param int at_once: continuations of equal length in a batch, at most.
    :raises ValueError: for a continuation that alone is longer than the model's context.
    """
    totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
    by_length: dict[int, list[tuple[int, list[int], list[int]]]] = {}
    for i, (before, after) in enumerate(pairs):
        for known, piece in _pieces(lm, before, after):
            by_length.setdefault(len(piece), []).append((i, known, piece))
    for length, same in by_length.items():
        for start in range(0, len(same), at_once):
            members, prompts, given = zip(*same[start : start + at_once], strict=True)
            context = Context.root(lm, ("",) * len(members), list(prompts), batched=True)
            tokens = torch.tensor(given, device=context.tokens.device)
            log_probs = lm.step_log_prob(context, tokens, StepOptions((), length)).tolist()
            best = lm.sample_step(context, context.batch_shape, StepOptions((), length, top_k=1)).tokens
            for i, log_prob, same_tokens in zip(members, log_probs, (best == tokens).all(-1).tolist(), strict=True):
                totals[i] += log_prob
                greedy[i] &= same_tokens
    return list(zip(totals, greedy, strict=True))


def _pieces(lm: LanguageModel, before: list[int], after: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """A continuation cut behind the tokens that end a text, which a step holds at its end only, and what stands before each piece."""
    ends = set(lm.eos_ids.tolist())
    begin = 0
    for i, token in enumerate(after, 1):
        if token in ends or i == len(after):
            room = lm.max_length - (i - begin)
            if room < 1:
                raise ValueError(f"a continuation of {i - begin} tokens does not fit into the model's context of {lm.max_length} tokens")
            yield [*before, *after[:begin]][-room:], after[begin:i]
            begin = i
