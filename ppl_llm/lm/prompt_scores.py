"""Log-probabilities of given steps, read from the server's scores of whole prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inference.cost import count
from ..remote.completion_service import CompletionService

PROMPTS_PER_REQUEST = 256
"""Servers limit the prompts of a request (vLLM to 1024)."""


def score_steps(service: CompletionService, model: str, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Tensor:
    """``[A]``: of steps given their prefixes, each distinct pair asked for once.

    The server runs the whole prompt for it, without its prefix cache.

    :param pairs: token ids of prefix and step.
    :raises ValueError: if the server does not score prompts.
    """
    distinct = list(dict.fromkeys(pairs))
    groups = [distinct[k : k + PROMPTS_PER_REQUEST] for k in range(0, len(distinct), PROMPTS_PER_REQUEST)]
    shared = {"model": model, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 1.0}
    bodies = [{**shared, "prompt": [[*prefix, *step] for prefix, step in group]} for group in groups]
    sums: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for group, completion in zip(groups, service.complete(bodies, [len(group) for group in groups]), strict=True):
        for (prefix, step), choice in zip(group, completion.choices, strict=True):
            given = choice.log_probs or []
            total = sum_known(given[len(prefix) :], len(step)) if len(given) == len(prefix) + len(step) else None
            if total is None:
                raise ValueError("the server does not score prompts (echo with logprobs), which the log-probability of a step needs")
            sums[prefix, step] = total
    count(tokens_scored=sum(len(step) for _, step in distinct))
    return torch.tensor([sums[pair] for pair in pairs])


def sum_known(log_probs: Sequence[float | None] | None, n: int) -> float | None:
    """Sum of the first ``n``; ``None`` if one of them is not known."""
    known = [each for each in (log_probs or [])[:n] if each is not None]
    return sum(known) if len(known) == n else None
