"""New turns: contexts that begin again, from prompts made of what was written before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..context import Context
from ..lm.base import language_model


def next_turn(problem: str | list[dict[str, str]], draft: str, request: str) -> list[dict[str, str]]:
    """The problem, a text or a whole conversation, the draft as the assistant's answer, and a request."""
    begun = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
    return [*begun, {"role": "assistant", "content": draft}, {"role": "user", "content": request}]


def restarted(written: Context, prompts: list[Any]) -> Context:
    """Contexts of new prompts in the places of sequences that were written; their problems stay those of these.

    :param Context written: sequences ``[*batch_shape]``.
    :param list prompts: what ``lm.start`` takes, one for each sequence, the last batch dimension fastest.
    :raises ValueError: if the prompts begin different answers, or one is no text and no messages.
    """
    for each in prompts:
        if not isinstance(each, str | list | tuple) or not each:
            raise ValueError(f"a prompt of the next turn must be a text or chat messages, got {each!r}")
    started = language_model(written).start(prompts)
    begun = set(started.prefills) or {""}
    if len(begun) > 1:
        raise ValueError(f"all prompts of a round must begin the same answer, or none; these begin {sorted(begun)[:3]}")

    def shaped(tensor: Tensor) -> Tensor:
        return tensor.reshape((*written.batch_shape, *tensor.shape[1:]))

    return replace(
        started._map(shaped),
        problems=written.problems,
        problem_index=written.problem_index,
        prefills=tuple(begun) * len(written.problems) if any(begun) else (),
        max_completion=written.max_completion,
        answer_forms=written.answer_forms,
        final_stop=written.final_stop,
        thinking=written.thinking,
    )


def flat(nested: Any) -> list[str]:
    """Texts of nested lists, the innermost dimension fastest."""
    return [text for each in nested for text in flat(each)] if isinstance(nested, list) else [nested]
