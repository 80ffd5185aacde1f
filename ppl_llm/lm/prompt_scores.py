"""Log-probabilities of given steps, read from the server's scores of whole prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..context import PAD, Context
from ..inference.cost import count
from ..remote.completion_service import CompletionService

PROMPTS_PER_REQUEST = 256
"""Servers limit the prompts of a request (vLLM to 1024)."""


def score_steps(service: CompletionService, model: str, context: Context, active: Tensor, steps: Tensor) -> Tensor:
    """Log-probabilities ``[A, M]`` in float64 of the tokens of steps, each distinct step asked for once; 0 on padding.

    The server runs the whole prompt for it, without its prefix cache.

    :param Tensor active: ``[A]`` flat indices of the sequences that take steps.
    :param Tensor steps: ``[N, M]`` of all sequences, padded with ``PAD``.
    :raises ValueError: if the server does not score prompts.
    """
    written = [tuple(token for token in row if token != PAD) for row in steps[active].tolist()]
    pairs = list(zip(map(tuple, sequences(context, active)), written, strict=True))
    distinct = list(dict.fromkeys(pairs))
    groups = [distinct[k : k + PROMPTS_PER_REQUEST] for k in range(0, len(distinct), PROMPTS_PER_REQUEST)]
    shared = {"model": model, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 1.0}
    bodies = [{**shared, "prompt": [[*prefix, *step] for prefix, step in group]} for group in groups]
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    for group, completion in zip(groups, service.complete(bodies, [len(group) for group in groups]), strict=True):
        for (prefix, step), choice in zip(group, completion.choices, strict=True):
            given = choice.log_probs or []
            own = first_known(given[len(prefix) :], len(step)) if len(given) == len(prefix) + len(step) else None
            if own is None:
                raise ValueError("the server does not score prompts (echo with logprobs), which the log-probability of a step needs")
            found[prefix, step] = own
    count(tokens_scored=sum(len(step) for _, step in distinct))
    return padded([found[pair] for pair in pairs], steps.shape[-1]).to(steps.device)


def sequences(context: Context, active: Tensor) -> list[list[int]]:
    """Token ids of flat sequences."""
    rows = context.tokens.reshape(-1, context.tokens.shape[-1])[active].tolist()
    return [row[:length] for row, length in zip(rows, context.lengths.flatten()[active].tolist(), strict=True)]


def first_known(log_probs: Sequence[float | None] | None, n: int) -> list[float] | None:
    """The first ``n``; ``None`` if one of them is not known."""
    found = [each for each in (log_probs or [])[:n] if each is not None]
    return found if len(found) == n else None


def padded(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """``[A, width]`` in float64, 0 behind the ends."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64).view(len(rows), width)
