"""The options of :func:`~ppl_llm.reasoning` for solutions that think before they answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..lm.base import StepOptions
from ..thinking import CLOSE, Thinking

THINKING_OPTIONS = ("waits", "wait", "close", "max_thinking")
"""Their names."""


def thinking_of(waits: int, wait: str, close: str | None, max_thinking: int | None) -> Thinking | None:
    """How solutions think; ``None`` where nothing says that they do.

    :raises ValueError: for values out of range.
    """
    found = Thinking(CLOSE if close is None else close, waits, wait, max_thinking)
    return None if (waits, close, max_thinking) == (0, None, None) else found


def thinking_switch(thinking: str | None) -> dict[str, Any]:
    """Keywords of a language model for ``on`` or ``off``: Qwen3's switch in the chat template."""
    return {} if thinking is None else {"template_options": {"enable_thinking": thinking == "on"}}


def check_switch(switch: str | None, thinking: Thinking | None) -> None:
    """
    :param str switch: ``on`` or ``off``.
    :raises ValueError: for another word, or a budget of thinking that is switched off.
    """
    if switch not in (None, "on", "off"):
        raise ValueError(f"thinking must be on or off, got {switch!r}")
    if switch == "off" and thinking is not None:
        raise ValueError("thinking=off and a budget of thinking do not go together; leave out waits, close and max_thinking")


def with_thinking(options: StepOptions, thinking: Thinking, lm: Any, max_completion: int | None) -> StepOptions:
    """The options of steps that the closing tag ends as well.

    :param lm: ``None`` where none is loaded yet.
    :param int max_completion: tokens of a solution at most.
    :raises ValueError: for a constraint, which the texts that are written into a solution would not keep to; for a language model that
        cannot write them, or where they do not fit.
    """
    if options.constraint is not None:
        raise ValueError(
            f"constraint={options.constraint!r} and a thinking budget do not go together: what is written in place of the closing tag, and "
            "the tag itself, need not be in its language; leave out waits, close and max_thinking"
        )
    if max_completion is not None:
        thinking.check_room(max_completion)
    if lm is not None:
        thinking.check(lm, options.max_tokens, max_completion)
    return replace(options, stop=tuple(dict.fromkeys((*options.stops, thinking.close))))


def thinking_options(thinking: Thinking | None) -> dict[str, Any]:
    """Keywords of :func:`~ppl_llm.reasoning`."""
    return {} if thinking is None else {name: getattr(thinking, name) for name in THINKING_OPTIONS}
