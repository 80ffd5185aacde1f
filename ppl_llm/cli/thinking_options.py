"""The flags of solutions that think before they answer, which ``solve``, ``serve`` and ``evaluate`` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from . import completion
from .method_options import Command, insert_after
from .model_options import unescaped

PANEL = "Thinking"

_FLAGS: dict[str, tuple[Any, str]] = {
    "waits": (int | None, "Times that an early end of the thinking is replaced by --wait; by default 0."),
    "wait": (str | None, "What is written in place of the closing tag; by default Wait; \\n for a line break."),
    "close": (str | None, "The tag that closes the thinking; by default </think>. Answers are looked for behind it only."),
    "max_thinking": (int | None, "Tokens of thinking at most; it is closed there."),
    "thinking": (str | None, "on or off: the switch enable_thinking of the chat template."),
}


def with_thinking_options(after: str) -> Callable[[Command], Command]:
    """Gives a command these options, behind its parameter of this name; it gets them as keywords.

    :param str after: a parameter of the command, whose last is ``**options``.
    """
    return lambda command: insert_after(command, after, [_parameter(name) for name in _FLAGS])


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given, which leave ``options``."""
    found = {name: options.pop(name) for name in _FLAGS}
    given = {name: value for name, value in found.items() if value is not None}
    return given | {name: unescaped([given[name]])[0] for name in ("wait", "close") if name in given}


def _parameter(name: str) -> inspect.Parameter:
    kind, words = _FLAGS[name]
    complete = completion.among(("on", "off")) if name == "thinking" else None
    info = typer.Option(f"--{name.replace('_', '-')}", help=words, autocompletion=complete, rich_help_panel=PANEL)
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind, info])
