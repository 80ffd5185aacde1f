"""Options of judges, of turns and of thinking budgets, declared once for the commands that take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..programs.turn_options import TurnOptions
from ..reward.judge_options import JudgeOptions
from . import completion
from .errors import in_flags
from .method_options import Command, insert_after
from .model_options import unescaped

_JUDGE_PANEL, _TURN_PANEL, _THINKING_PANEL = "Options of judges", "Turns", "Thinking"


def _judge(
    thoughts: Annotated[
        int | None, typer.Option(help="Chains of thought about an answer, whose verdicts are averaged.", rich_help_panel=_JUDGE_PANEL)
    ] = None,
    agree: Annotated[
        float | None, typer.Option(help="Think only where neither word at once has this probability.", rich_help_panel=_JUDGE_PANEL)
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="Read a score from each chain: a scale such as 1-10, or FILE.py:function from the text to a probability.",
            rich_help_panel=_JUDGE_PANEL,
        ),
    ] = None,
    k_meta: Annotated[
        int | None, typer.Option(help="Chains that count: those that the judge itself finds soundest.", rich_help_panel=_JUDGE_PANEL)
    ] = None,
    thought_tokens: Annotated[int | None, typer.Option(help="Longest chain of thought.", rich_help_panel=_JUDGE_PANEL)] = None,
    each_step: Annotated[
        bool, typer.Option("--each-step", help="Judge every step, not whole answers.", rich_help_panel=_JUDGE_PANEL)
    ] = False,
    yes: Annotated[
        str | None,
        typer.Option(help="Its word for a right answer, a single token of its vocabulary; by default Yes.", rich_help_panel=_JUDGE_PANEL),
    ] = None,
    no: Annotated[str | None, typer.Option(help="Its word for a wrong answer; by default No.", rich_help_panel=_JUDGE_PANEL)] = None,
) -> None: ...


def _turns(
    rounds: Annotated[
        int, typer.Option(help="How often a solution is written: again from the draft before it.", rich_help_panel=_TURN_PANEL)
    ] = 1,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="What is said about each draft: verifier:FILE.py:function, its message; judge or judge:DIR, a critique; tests, those of "
            "the task code. By default a request to check it.",
            rich_help_panel=_TURN_PANEL,
        ),
    ] = None,
) -> None: ...


def _thinking(
    waits: Annotated[
        int | None,
        typer.Option(help="Times that an early end of the thinking is replaced by --wait; by default 0.", rich_help_panel=_THINKING_PANEL),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            help="What is written in place of the closing tag; by default Wait; \\n for a line break.", rich_help_panel=_THINKING_PANEL
        ),
    ] = None,
    close: Annotated[
        str | None,
        typer.Option(
            help="The tag that closes the thinking; by default </think>. Answers are looked for behind it only.",
            rich_help_panel=_THINKING_PANEL,
        ),
    ] = None,
    max_thinking: Annotated[
        int | None, typer.Option(help="Tokens of thinking at most; it is closed there.", rich_help_panel=_THINKING_PANEL)
    ] = None,
    thinking: Annotated[
        str | None,
        typer.Option(
            help="on or off: the switch enable_thinking of the chat template.",
            autocompletion=completion.among(("on", "off")),
            rich_help_panel=_THINKING_PANEL,
        ),
    ] = None,
) -> None: ...


JUDGE = list(inspect.signature(_judge, eval_str=True).parameters.values())
TURNS = list(inspect.signature(_turns, eval_str=True).parameters.values())
THINKING = list(inspect.signature(_thinking, eval_str=True).parameters.values())


def with_options(after: str, added: list[inspect.Parameter]) -> Callable[[Command], Command]:
    """Gives a command further options, behind its parameter of this name; it gets them as keywords.

    :param str after: a parameter of the command, whose last is ``**options``.
    """
    return lambda command: insert_after(command, after, added)


def judge_options(options: dict[str, Any]) -> JudgeOptions:
    """Those of a judge, taken out of a command's."""
    return JudgeOptions(**{parameter.name: options.pop(parameter.name) for parameter in JUDGE})


def turn_options(options: dict[str, Any], judge: JudgeOptions) -> TurnOptions:
    """Those of turns, taken out of a command's."""
    return TurnOptions(**{parameter.name: options.pop(parameter.name) for parameter in TURNS}, judge=judge)


def thinking_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of thinking that were given, taken out of a command's."""
    found = {parameter.name: options.pop(parameter.name) for parameter in THINKING}
    given = {name: value for name, value in found.items() if value is not None}
    return given | {name: unescaped([given[name]])[0] for name in ("wait", "close") if name in given}


@contextmanager
def flagged() -> Iterator[None]:
    """An error that begins with the name of one of these options names its flag."""
    try:
        yield
    except ValueError as error:
        told = in_flags(str(error), {p.name: f"--{p.name.replace('_', '-')}" for p in (*JUDGE, *TURNS)})
        if told == str(error):
            raise
        raise ValueError(told) from error
