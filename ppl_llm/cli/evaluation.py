"""The command ``evaluate``."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..methods import BUDGETED, BudgetedMethod, get_method
from ..reward.choice import RewardChoice
from ..threads import choose_threads
from . import completion
from .errors import INTERRUPTED, reported
from .evaluation_results import print_tables
from .json_log import LOG_JSON, JsonLog
from .live import Live
from .loading import DTYPE
from .model_options import (
    BRIDGE,
    CHOICES,
    CHOSEN_REWARD,
    EQUIVALENCE,
    EVERY,
    FALLBACK,
    FINISH,
    JSON_SCHEMA,
    MAX_STEPS,
    POWER,
    PRM_FAMILY,
    REGEX,
    STOP,
    finish_of,
    most_steps,
    parse_options,
    prompt_options,
    read_option,
    tell,
    unescaped,
)
from .remote import Served, importing
from .settings import default_method
from .shared_options import JUDGE, THINKING, TURNS, flagged, judge_options, thinking_options, turn_options, with_options

if TYPE_CHECKING:
    from ..evaluation.source import Models

_EVALUATE_EXAMPLES = (
    "Examples:\n\nppl-llm evaluate demo --methods smc,importance,best-of-n --budgets 1,4,16 --limit 60 --out runs/first"
    "\n\nppl-llm evaluate problems.jsonl --lm path/to/lm --prm path/to/prm --workers 2 --out runs/mine\n\nppl-llm report runs/first"
    "\n\nppl-llm evaluate reasoning-gym:chain_sum --task-option seed=3 --task-option min_terms=4 --limit 50 --out runs/sums"
)
_DEFAULT_METHODS = "smc,importance,self-consistency,best-of-n"
_METHODS_HELP = f"Separated by commas, with options after colons, such as smc:islands=4: {', '.join(BUDGETED)}."


def check_effects(models: Models, methods: list[BudgetedMethod], wait: bool, log: JsonLog | None) -> None:
    """Options that some of the methods would leave out: told, or refused where all would.

    :param bool wait: whether ``--wait`` was given.
    :raises ValueError: for an option without any effect.
    """
    if wait and not (models.waits or any(method.model_options.get("waits") for method in methods)):
        raise ValueError("--wait has no effect without --waits, the number of times that the closing tag is replaced")
    votes = [method.name for method in methods if not method.weighs_power]
    if models.power != 1 and len(votes) == len(methods):
        raise ValueError(
            f"--power {models.power:g} has no effect with --methods {','.join(votes)}: votes are over solutions as the language model "
            "writes them; take importance, smc or power-smc"
        )
    if models.power != 1 and votes:
        tell(f"{', '.join(votes)}: as without --power, over solutions as the language model writes them", log)


def parse_numbers(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas.

    :raises ValueError: for anything else, naming the option.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be whole numbers separated by commas, such as 1,2,4, got {text!r}") from error


def split_methods(text: str) -> list[str]:
    """Names separated by commas; those within the powers of ``betas=0.25,1`` are followed by a number and separate nothing."""
    return [name.strip() for name in re.split(r",(?!\s*[\d.])", text)]


_TASK_OPTION = (
    "Of the data, as NAME=VALUE, and as often as needed. Of files and data sets: problem, answer, id and level (names of fields), split, "
    "config, extract=true (the answer stands in a solution). Of reasoning-gym: size, seed, level, instruction and the task's own. Of code: "
    "those of files, tests and public_tests (names of fields), instruction, seconds, memory, output, processes, disk, isolation."
)


@with_options("top_k", THINKING)
@with_options("reward", JUDGE)
@with_options("preset", TURNS)
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            help="demo, a JSONL file (problem, answer), a data set of the Hub, reasoning-gym:TASK or code:FILE (problem, tests).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the records; the same command again resumes the run.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help=_METHODS_HELP,
            autocompletion=completion.several(BUDGETED),
            show_default=f"{_DEFAULT_METHODS}; without a reward power-smc and self-consistency; under a constraint smc and importance",
        ),
    ] = None,
    budgets: Annotated[str, typer.Option(help="Completions per problem, separated by commas.")] = "1,2,4,8,16",
    seeds: Annotated[int, typer.Option(help="Repetitions of everything.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Only the first problems.")] = None,
    task_option: Annotated[list[str] | None, typer.Option(help=_TASK_OPTION)] = None,
    lm: Annotated[str, typer.Option(help="Language model: demo, a directory, or a name on the Hugging Face Hub.")] = "demo",
    prm: Annotated[
        str | None,
        typer.Option(help="Process reward model: demo, demo-weak, a directory, or a Hub name; the demo language model has its own."),
    ] = None,
    reward: CHOSEN_REWARD = None,
    prm_family: PRM_FAMILY = None,
    preset: Annotated[str, typer.Option(help="exact, twisted, as_paper, its_hub or entropic.")] = "exact",
    aggregation: Annotated[str | None, typer.Option(help="Score from those of steps: last, prod, min, max, mean, window:3.")] = None,
    power: Annotated[float, typer.Option(help=POWER)] = 1.0,
    bridge: Annotated[int | None, typer.Option(help=BRIDGE)] = None,
    max_steps: MAX_STEPS = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a step at most.")] = 256,
    max_tokens_completion: Annotated[int, typer.Option(help="Tokens of a solution at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of the language model.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: the likeliest tokens of so much probability.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many of the likeliest tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help=STOP)] = None,
    every: EVERY = None,
    finish: Annotated[str | None, typer.Option(help=FINISH)] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System turn before the problem.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="A file with a Jinja chat template, in place of the tokenizer's.")] = None,
    json_schema: JSON_SCHEMA = None,
    regex: REGEX = None,
    choices: CHOICES = None,
    answer_fallback: Annotated[str | None, typer.Option(help=FALLBACK)] = None,
    keep_texts: Annotated[
        bool, typer.Option("--keep-texts", help="Record the text of each solution, for report --failures and fit-reward.")
    ] = False,
    confidence: Annotated[
        str | None,
        typer.Option(help="Record how sure the language model is of each solution, for votes: KIND:WINDOW:OVER, e.g. top-k:2048:bottom."),
    ] = None,
    group_size: Annotated[int, typer.Option(help="Problems that share a batch.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes, or actors with --ray; 0 works in this process.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, auto or local (needs ray).")] = None,
    device: Annotated[str | None, typer.Option(help="Where the models run, e.g. cuda or auto; by default the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    equivalence: Annotated[str, typer.Option(help=EQUIVALENCE)] = "exact",
    calibration: Annotated[Path | None, typer.Option(help="A file that ppl-llm calibrate wrote, applied to the reward model.")] = None,
    answer_scores: Annotated[
        bool, typer.Option("--answer-scores", help="Record the score of each whole solution as one step as well, for model-based votes.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help=LOG_JSON)] = False,
    **options: Any,
) -> None:
    """Accuracy against budget on a set of problems, recorded so that nothing is lost or done twice.

    Ctrl-C or a kill loses at most the current batch; run the same command to resume.
    """
    from . import loading

    log = JsonLog() if log_json else None
    with loading.quiet(verbose or log_json), log or nullcontext(), reported(verbose, log), flagged():
        from ..evaluation.run import evaluate as run
        from ..evaluation.source import Models
        from ..tasks.load import CODE, open_task

        turns = turn_options(options, judge_options(options))
        judge, thinking = turns.judge_of_reward(reward), thinking_options(options)
        chosen = RewardChoice.of(lm, prm, reward, judge)
        named = chosen.name if chosen.kind == "prm" else None
        if calibration is not None and named is None:
            raise ValueError(f"--calibration is for a process reward model, and the reward is {chosen}")
        scale = None if calibration is None else dataclasses.astuple(loading.load_calibration(calibration, str(named)))
        models = Models(
            lm,
            prm,
            preset,
            aggregation,
            most_steps(max_steps, every, max_tokens_completion),
            max_tokens,
            temperature,
            device,
            equivalence,
            scale,
            answer_scores,
            dtype,
            reward=reward,
            max_tokens_completion=max_tokens_completion,
            top_p=top_p,
            top_k=top_k,
            stop=unescaped(stop),
            finish=finish_of(lm, finish),
            prm_family=prm_family,
            answer_fallback=answer_fallback or ("code" if data.startswith(CODE) else None),
            keep_texts=keep_texts,
            json_schema=None if json_schema is None else read_option("--json-schema", json_schema),
            regex=regex,
            choices=None if choices is None else tuple(choices.split(",")),
            power=power,
            bridge=bridge,
            judge=judge,
            turns=turns,
            every=every,
            confidence=confidence,
            **thinking,
            **prompt_options(system_prompt, chat_template),
        )
        Served("prm", named or "", family=prm_family).check()
        models.check()
        if methods is None and models.constraint is not None:
            methods = "smc,importance"
        elif methods is None:
            methods = (
                _DEFAULT_METHODS if chosen.kind != "none" else ",".join(dict.fromkeys((default_method(lm, chosen), "self-consistency")))
            )
            if chosen.kind == "none":
                tell(f"no reward model was given: {methods}. Others need --prm, or --reward judge, confidence or another", log)
        elif (reward or prm) and not answer_scores and not any(get_method(name).method.scored for name in split_methods(methods)):
            tell(f"{methods} asks no reward: {chosen} is not loaded, and the records are those of a run without", log)
        check_effects(models, [get_method(name) for name in split_methods(methods)], "wait" in thinking, log)
        loading.check_device(device)
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {seeds}")
        if limit is not None and limit < 1:
            raise ValueError(f"--limit must be at least 1, got {limit}")
        with importing():
            problems = list(open_task(data, parse_options("--task-option", task_option or [])).problems(limit))
        if workers == 0 and lm == "demo":
            choose_threads([])
        live = Live(Console(stderr=True), log)
        try:
            progress = run(
                problems,
                models,
                out,
                methods=split_methods(methods),
                budgets=parse_numbers("--budgets", budgets),
                seeds=range(seeds),
                group_size=group_size,
                workers=workers,
                ray=ray,
                report=live,
                note=partial(tell, log=log),
            )
        except KeyboardInterrupt:
            typer.secho(f"interrupted; the records in {out} are complete up to here; run the same command to resume", fg="yellow", err=True)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            live.close()
        for unit, error in progress.quarantined.items():  # before the tables, which there are none of where all units failed
            typer.secho(
                f"given up after three tries: {', '.join(unit.methods)}, group {unit.group}, seed {unit.seed}: {error}", fg="red", err=True
            )
        print_tables(out)
        if progress.quarantined:
            raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=_EVALUATE_EXAMPLES)(evaluate)
