"""The flags of ``solve`` that belong to methods, made from the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from ..methods import SOLVING, Option
from . import completion

Command = TypeVar("Command", bound=Callable[..., None])

PANEL = "Options of methods"


def method_options() -> dict[str, Option]:
    """All options that some method of ``solve`` takes, by name."""
    found: dict[str, Option] = {}
    for method in SOLVING.values():
        for option in method.options:
            found.setdefault(option.name, option)
    return found


def takers(name: str) -> list[str]:
    """The methods of ``solve`` that take an option."""
    return [method.name for method in SOLVING.values() if method.option(name) is not None]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were set: a flag that was not is ``False``, and every other option ``None``."""
    return {name: value for name, value in values.items() if value is not None and value is not False}


def with_method_options(after: str) -> Callable[[Command], Command]:
    """Gives a command the options of the methods, behind its parameter of this name; it gets them as keywords.

    :param str after: a parameter of the command, whose last is ``**options``.
    """

    return lambda command: insert_after(command, after, list(map(_parameter, method_options().values())))


def insert_after(command: Command, after: str, more: list[inspect.Parameter]) -> Command:
    """The command with more options behind its parameter of a name, for typer to see; it gets them as keywords."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    place = 1 + next(i for i, parameter in enumerate(own) if parameter.name == after)
    parameters = [*own[:place], *more, *own[place:]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(option: Option) -> inspect.Parameter:
    complete = completion.among(option.choices) if option.choices else None
    info = typer.Option(option.flag, help=_help(option), autocompletion=complete, rich_help_panel=PANEL)
    kind: Any = bool if option.kind is bool else option.kind | None
    default = False if option.kind is bool else None
    return inspect.Parameter(option.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, info])


def _help(option: Option) -> str:
    """With the methods that take it and their defaults."""
    defaults: dict[Any, list[str]] = {}
    for name in takers(option.name):
        own = SOLVING[name].option(option.name)
        defaults.setdefault(None if own is None else own.default, []).append(name)
    text = "; ".join(", ".join(names) + (f": {default}" if default else "") for default, names in defaults.items())
    return f"{option.help} [dim]({text})[/]"
