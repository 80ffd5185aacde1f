"""The application, and its command ``solve``."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import threads
from ..demo import example, looks_like_demo
from ..methods import SOLVING
from ..reward.choice import RewardChoice
from . import completion, demo, evaluation, evaluation_results, loading, methods, page_file, remote, serve, startup
from .console import output_console
from .errors import ABSTAINED, FAILED, INTERRUPTED, reported
from .json_log import LOG_JSON, JsonLog
from .loading import DTYPE
from .method_options import given, with_method_options
from .model_options import (
    ABSTAIN,
    BRIDGE,
    CALIBRATION,
    CHOICES,
    CHOSEN_REWARD,
    EQUIVALENCE,
    EVERY,
    EXPLAIN,
    FALLBACK,
    FINISH,
    JSON_SCHEMA,
    LM,
    LM_MODEL,
    MAX_STEPS,
    POWER,
    PRM,
    PRM_FAMILY,
    PRM_MODEL,
    REGEX,
    STOP,
    TOKENIZER,
    most_steps,
    prompt_options,
    tell,
    unescaped,
)
from .notes import notes, unfinished_note
from .one_line_errors import OneLineErrors
from .settings import Settings, default_method
from .shared_options import JUDGE, THINKING, TURNS, flagged, judge_options, thinking_options, turn_options, with_options

_PROBLEM = example(1).text

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Examples:\n\nppl-llm demo\n\nppl-llm solve '{_PROBLEM}'",
)

_METHOD_HELP = (
    "How to infer: " + ", ".join(f"[bold]{name}[/]" for name in SOLVING) + "; list tells more. Options may follow colons: smc:islands=4."
)
_PRESET_HELP = (
    "What to infer. [bold]exact[/]: p(solution) times the probability that every step is right. [bold]twisted[/]: times that of the worst "
    "step. [bold]as_paper[/], [bold]its_hub[/]: the weights of Puri et al. (2025) as released. [bold]entropic[/]: those, flattened while "
    "few particles dominate."
)

_SOLVE_EXAMPLES = (
    f"Examples:\n\nppl-llm solve '{_PROBLEM}'\n\nppl-llm solve --particles 64 --preset twisted --json - < problem.txt"
    "\n\nppl-llm solve --lm Qwen/Qwen2.5-1.5B-Instruct --prm Qwen/Qwen2.5-Math-PRM-7B --device cuda 'How many primes are below 60?'"
    f"\n\nppl-llm solve --html run.html '{_PROBLEM}'"
    "\n\nppl-llm solve --lm http://host:8000/v1 --lm-model NAME --prm http://host:8001/v1 'How many primes are below 60?'"
)


def main() -> None:
    """Entry point of ``ppl-llm``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end the run
    threads.bound_spinning()
    startup.begin()
    app(prog_name="ppl-llm")


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ppl-llm {__version__}")
        raise typer.Exit()


def _list(method: str | None) -> str | None:
    if method == "list":
        methods.methods()
        raise typer.Exit()
    return method


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Solve problems step by step: a language model writes, a process reward model scores, Pyro infers."""


@app.command(epilog=_SOLVE_EXAMPLES)
@with_options("top_k", THINKING)
@with_method_options(after="preset")
@with_options("reward", JUDGE)
@with_options("preset", TURNS)
def solve(
    problem: Annotated[str, typer.Argument(help="The problem's text; - reads it from standard input.", show_default=False)],
    lm: LM = "demo",
    prm: PRM = None,
    reward: CHOSEN_REWARD = None,
    lm_model: LM_MODEL = None,
    lm_tokenizer: TOKENIZER = None,
    prm_model: PRM_MODEL = None,
    prm_tokenizer: TOKENIZER = None,
    prm_family: PRM_FAMILY = None,
    calibration: CALIBRATION = None,
    method: Annotated[
        str | None,
        typer.Option(
            callback=_list,
            is_eager=True,
            help=_METHOD_HELP,
            autocompletion=completion.among(SOLVING),
            show_default="smc; without a reward power-smc, on servers self-consistency; under a constraint smc",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=_PRESET_HELP, show_default="exact", autocompletion=completion.among(completion.PRESETS))
    ] = None,
    power: Annotated[float | None, typer.Option(help=POWER, show_default="1; 4 for power-smc and power-mh")] = None,
    bridge: Annotated[int | None, typer.Option(help=BRIDGE)] = None,
    max_steps: MAX_STEPS = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a step at most; by default the library's 256.")] = None,
    max_tokens_completion: Annotated[int, typer.Option(help="Tokens of a solution at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of the language model.")] = 1.0,
    json_schema: JSON_SCHEMA = None,
    regex: REGEX = None,
    choices: CHOICES = None,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: the likeliest tokens of so much probability.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many of the likeliest tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help=STOP)] = None,
    every: EVERY = None,
    finish: Annotated[str | None, typer.Option(help=FINISH)] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System turn before the problem.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="A file with a Jinja chat template, in place of the tokenizer's.")] = None,
    equivalence: Annotated[str, typer.Option(help=EQUIVALENCE)] = "exact",
    answer_fallback: Annotated[str | None, typer.Option(help=FALLBACK)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where the models run, e.g. cuda or auto; by default the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page to open in a browser: every solution at every step.", metavar="FILE")
    ] = None,
    abstain: ABSTAIN = None,
    explain: EXPLAIN = False,
    force: Annotated[bool, typer.Option("--force", help="Give the demo model a problem that it was not made for.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings, tracebacks, and a line per step without a terminal.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help=LOG_JSON)] = False,
    **options: Any,
) -> None:
    """Solve a problem and show the posterior over answers, the best solution with its scores, and the cost.

    Ctrl-C shows the posterior so far.
    """
    log = JsonLog() if log_json else None
    with startup.uncollected(), reported(verbose, log), flagged():
        turns = turn_options(options, judge_options(options))
        chosen_reward = RewardChoice.of(lm, prm, reward, turns.judge_of_reward(reward))
        constrained = (json_schema, regex, choices) != (None, None, None)
        thinking = thinking_options(options)
        settings = Settings(
            lm=lm,
            reward=chosen_reward,
            method=method if method is not None else "smc" if constrained else default_method(lm, chosen_reward),
            preset=preset,
            max_steps=most_steps(max_steps, every, max_tokens_completion),
            max_tokens=max_tokens,
            max_tokens_completion=max_tokens_completion,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=unescaped(stop),
            finish=finish,
            equivalence=equivalence,
            answer_fallback=answer_fallback,
            seed=seed,
            **thinking,
            options=given(options),
            dtype=dtype,
            json_schema=json_schema,
            regex=regex,
            choices=choices,
            power=power,
            bridge=bridge,
            turns=turns,
            abstain=abstain,
            every=every,
        )
        prm_name = chosen_reward.name if chosen_reward.kind == "prm" else None
        served = (
            remote.Served("lm", lm, lm_model, lm_tokenizer),
            remote.Served("prm", prm_name or "", prm_model, prm_tokenizer, prm_family),
        )
        lm_options = prompt_options(system_prompt, chat_template, settings.thinking)
        text = (sys.stdin.read() if problem == "-" else problem).strip()
        if not text:
            raise ValueError("the problem is empty; give its text, or - to read it from standard input")
        settings.check()
        for each in served:
            each.check()
        if calibration is not None and prm_name is None:
            raise ValueError(f"--calibration is for a process reward model, and the reward is {chosen_reward}")
        scale = None if calibration is None else loading.load_calibration(calibration, str(prm_name))
        loading.check_device(device)
        if html is not None:
            page_file.check(html)
        if lm == "demo" and not force:
            _require_demo_problem(text)
    from .progress import Progress
    from .report import Report
    from .run import sweep

    with loading.quiet(verbose or log_json), log or nullcontext():
        with reported(verbose, log):
            language_model = remote.load_lm(served[0], device, dtype, **lm_options)
            reward_model, load_lm = None, partial(remote.load_named_lm, device=device, dtype=dtype)
            if settings.asks_reward:
                reward_model = chosen_reward.load(
                    language_model,
                    load_lm,
                    lambda name: remote.load_prm(served[1], device, scale, dtype),
                    partial(loading.load_orm, device=device, dtype=dtype),
                    every,
                )
            prompt = turns.prompt(language_model, load_lm, answer_fallback)
            threads.choose_threads([language_model, reward_model])
            for note in notes(settings, reward_model, reward is not None or prm is not None):
                tell(note, log)
            progress = Progress(Console(stderr=True), settings.title, verbose, settings.unit, log, max_tokens_completion)
            outcome = sweep(settings, language_model, reward_model, text, progress, prompt)
            if outcome.posterior is None:
                raise KeyboardInterrupt(f"before the first {settings.unit} was complete; there is nothing to show")
        chosen = settings.describe() | served[0].settings() | served[1].settings()
        if scale is not None:
            chosen["calibration"] = dataclasses.asdict(scale)
        if (unfinished := unfinished_note(settings, outcome.posterior)) is not None:
            tell(unfinished, log)
        told = settings.equivalent(), outcome.failure, abstain, explain
        report = Report.of(outcome.model, outcome.posterior, text, chosen, outcome.partial, *told)
    try:
        if as_json:
            typer.echo(json.dumps(report.as_dict(), allow_nan=False, indent=2))
        else:
            report.print(output_console())
    finally:  # the reader of a pipe may be gone before the tables end
        if html is not None:
            with reported(verbose, log):
                page_file.write(outcome.posterior, html, settings.named.method.name)
    if outcome.failure is not None:
        raise typer.Exit(FAILED)
    if outcome.partial or report.abstained:
        raise typer.Exit(INTERRUPTED if outcome.partial else ABSTAINED)


def _require_demo_problem(text: str) -> None:
    if not looks_like_demo(text):
        raise ValueError(
            "the demo language model knows only its own kind of problem, and this does not look like one. "
            f"Try: ppl-llm solve '{example().text}' (--force solves it all the same, --lm takes another model)"
        )


demo.register(app)
evaluation.register(app)
evaluation_results.register(app)
methods.register(app)
serve.register(app)
