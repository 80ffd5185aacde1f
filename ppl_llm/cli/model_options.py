"""Options of the models that ``solve`` and ``evaluate`` share, and what is said about them before a run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..reward.choice import REWARD_KINDS
from . import completion
from .errors import ABSTAINED
from .json_log import JsonLog

CLOSED_BOX = r"\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
"""A boxed answer with two levels of braces inside."""

REWARD = (
    "What scores the steps: " + "; ".join(REWARD_KINDS.values()) + ". By default the demo reward model for the demo language model, none "
    "for others."
)
STOP = (
    "Text that ends a step, \\n for a line break; markdown for blank lines outside of code fences and display mathematics. May be given "
    "several times. By default a blank line."
)
FINISH = "Regular expression of a step that ends a solution, or never; by default a closed \\boxed{...}, but for the demo model."
POWER = (
    "Infer p(solution)^POWER times the scores' factors: solutions that the language model finds probable as a whole. Steps are proposed at "
    "the temperature divided by it."
)
BRIDGE = "Steps along which the power of a particle filter grows from 1; the result's target is the same."
EQUIVALENCE = "When answers are the same: exact (letter by letter), or math (needs math-verify)."
FALLBACK = (
    "Where no answer is found: last-number takes the last number of the solution, text all of it, as a solution under a constraint "
    "(--choices, --regex, --json-schema) does by itself; code takes the last code block and nothing else, as the task code does."
)


ABSTAIN = Annotated[
    float | None,
    typer.Option(
        help=f"Give no answer where the best one has less probability than this, such as 0.3; the exit status is {ABSTAINED} then.",
        metavar="P",
        show_default=False,
    ),
]
EXPLAIN = Annotated[bool, typer.Option("--explain", help="Also say why this answer, how sure it is, and what would change it.")]
LM = Annotated[
    str,
    typer.Option(
        help="Language model: demo, a directory, a name on the Hugging Face Hub, or the address of a server.",
        autocompletion=completion.model(completion.LMS),
    ),
]
PRM = Annotated[
    str | None,
    typer.Option(
        help="Process reward model: demo, demo-weak, a directory, a Hub name, or an address; the demo language model has its own.",
        autocompletion=completion.model(completion.PRMS),
    ),
]
CHOSEN_REWARD = Annotated[str | None, typer.Option(help=REWARD, autocompletion=completion.among(REWARD_KINDS))]
LM_MODEL = Annotated[str | None, typer.Option(help="Name that the server knows the language model by.")]
PRM_MODEL = Annotated[str | None, typer.Option(help="Name that the server knows the reward model by.")]
TOKENIZER = Annotated[str | None, typer.Option(help="Directory or Hub name of its tokenizer; by default its own name.")]
PRM_FAMILY = Annotated[
    str | None, typer.Option(help="qwen, skywork, math-shepherd or rlhflow; by default recognised by the configuration.")
]
CALIBRATION = Annotated[
    Path | None, typer.Option(help="A file that ppl-llm calibrate wrote, applied to the reward model.", show_default=False)
]
JSON_SCHEMA = Annotated[
    Path | None, typer.Option(help="Only solutions that are a JSON value of the schema in this file.", metavar="FILE", show_default=False)
]
REGEX = Annotated[str | None, typer.Option(help="Only solutions that match this regular expression as a whole.")]
CHOICES = Annotated[str | None, typer.Option(help="Only these solutions, separated by commas.", metavar="A,B,C")]
EVERY = Annotated[
    str | None,
    typer.Option(
        help="A factor at every token, word or line of a solution, or where a match of a regular expression ends: steps end there, in "
        "place of --stop, and a verifier, judge or classifier is asked about the text so far.",
        metavar="POSITION",
        autocompletion=completion.among(("token", "word", "line")),
    ),
]
MAX_STEPS = Annotated[
    int | None,
    typer.Option(help="Steps of a solution at most.", show_default="40; with --every as many as --max-tokens-completion"),
]
"""Options that several commands declare."""

STEPS = 40
"""Default of ``--max-steps``."""


def most_steps(given: int | None, every: str | None, max_tokens_completion: int) -> int:
    """``--max-steps``. Positions of a text may be as close as its tokens, so they are bounded by default by what bounds those."""
    return given if given is not None else STEPS if every is None else max_tokens_completion


def unescaped(stop: Sequence[str] | None) -> tuple[str, ...]:
    """Delimiters as they were typed, with line breaks and tabs for ``\\n`` and ``\\t``."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in stop or ())


def parse_options(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options given as ``name=value``; a value that is JSON stands for what it says, any other for its text.

    :raises ValueError: for anything else, naming the option of the command line.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} must be NAME=VALUE, such as seed=3, got {text!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def finish_of(lm: str, finish: str | None) -> str | None:
    """The regular expression of a step that ends a solution, ``None`` where only the language model ends it.

    :param str lm: name of the language model; demo ends its solutions itself.
    :param str finish: as it was given; ``None`` for a closed box.
    :raises ValueError: if it is no regular expression.
    """
    if finish is None:
        return None if lm == "demo" else CLOSED_BOX
    try:
        re.compile(finish)
    except re.error as error:
        raise ValueError(f"--finish must be a regular expression or never, got {finish!r}: {error}") from error
    return None if finish == "never" else finish


def read_option(option: str, path: Path) -> str:
    """The text of a file that an option names.

    :raises OSError: if it cannot be read, naming the option and the file.
    :raises ValueError: for a file that is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise OSError(f"{option} {path}: {error.strerror}; give a file that exists and can be read") from error


def prompt_options(system_prompt: str | None, chat_template: Path | None, thinking: str | None = None) -> dict[str, Any]:
    """Keywords of a language model.

    :param str thinking: ``on`` or ``off``.
    :raises OSError: if there is no such template.
    """
    options: dict[str, Any] = {} if system_prompt is None else {"system_prompt": system_prompt}
    if chat_template is not None:
        options["chat_template"] = read_option("--chat-template", chat_template)
    if thinking is not None:
        from ..programs.thinking import thinking_switch

        options |= thinking_switch(thinking)
    return options


def tell(note: str, log: JsonLog | None) -> None:
    """A line on stderr, or an event."""
    if log is not None:
        log.event("note", message=note)
    else:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
