"""Mistakes on the command line itself, in one line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from .errors import BAD_INPUT


class OneLineErrors(TyperGroup):
    """Commands whose usage errors are one line like every other error of this program: what is wrong, its value, and where to look.

    Typer's parser raises them; which class they have depends on its version, what they offer does not.
    """

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(given, standalone_mode=False, **extra)
        try:
            code = super().main(given, standalone_mode=False, **extra)
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                typer.secho(f"error: {described(error, given)}", fg=typer.colors.RED, err=True)
            sys.exit(BAD_INPUT)
        sys.exit(code if isinstance(code, int) else 0)


def described(error: Any, given: Sequence[str]) -> str:
    """A usage error in one line.

    :param given: the arguments, in which the value that was not understood stands.
    """
    message = " ".join(error.format_message().split()).rstrip(".")
    options = getattr(getattr(error, "param", None), "opts", [])
    for option, value in zip(given, [*given[1:], ""], strict=True):
        name, equals, joined = option.partition("=")
        if name in options and message.startswith("Invalid value"):
            message += f", got {(joined if equals else value)!r}"
            break
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ppl-llm"
    return f"{message[0].lower()}{message[1:]}{'' if message.endswith('?') else ';'} {command} --help lists what there is"
