"""The command ``serve``."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..methods import SOLVING
from ..remote.address import is_address
from ..reward.choice import RewardChoice
from ..threads import choose_threads
from . import completion, loading, remote
from .errors import reported
from .json_log import LOG_JSON, JsonLog
from .loading import DTYPE
from .method_options import given, with_method_options
from .model_options import (
    CALIBRATION,
    CHOSEN_REWARD,
    EQUIVALENCE,
    FALLBACK,
    FINISH,
    LM,
    LM_MODEL,
    PRM,
    PRM_FAMILY,
    PRM_MODEL,
    STOP,
    TOKENIZER,
    prompt_options,
    tell,
    unescaped,
)
from .settings import Settings
from .shared_options import JUDGE, THINKING, flagged, judge_options, thinking_options, with_options

if TYPE_CHECKING:
    from ..gateway.catalogue import Choice
    from ..gateway.guard import Keys

_EXAMPLES = (
    "Examples:\n\nppl-llm serve --particles 16"
    "\n\nppl-llm serve --lm Qwen/Qwen2.5-1.5B-Instruct --prm Qwen/Qwen2.5-Math-PRM-7B --device cuda"
    "\n\nppl-llm serve --lm http://host:8000/v1 --prm http://host:8001/v1 --port 8080 --keys keys.txt"
)


@with_options("top_k", THINKING)
@with_method_options(after="preset")
@with_options("reward", JUDGE)
def serve(
    lm: LM = "demo",
    prm: PRM = None,
    reward: CHOSEN_REWARD = None,
    lm_model: LM_MODEL = None,
    lm_tokenizer: TOKENIZER = None,
    prm_model: PRM_MODEL = None,
    prm_tokenizer: TOKENIZER = None,
    prm_family: PRM_FAMILY = None,
    calibration: CALIBRATION = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model.", show_default="the last part of the language model's name")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(help="A file of bearer keys, one a line; PPL_LLM_SERVE_KEYS holds more. By default none.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Of requests that name none; options may follow colons: smc:islands=4.",
            autocompletion=completion.among(SOLVING),
            show_default="smc; self-consistency without a reward",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="What to infer where a request does not say.", show_default="exact", autocompletion=completion.among(completion.PRESETS)
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Steps of a solution, where a request does not say.")] = 40,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a step at most; by default the library's 256.")] = None,
    max_tokens_completion: Annotated[int, typer.Option(help="Tokens of a solution, where a request does not say.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of the language model, where a request does not say.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling, where a request does not say.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many of the likeliest tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help=STOP)] = None,
    finish: Annotated[str | None, typer.Option(help=FINISH)] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System turn before a problem that is no list of messages.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="A file with a Jinja chat template, in place of the tokenizer's.")] = None,
    equivalence: Annotated[str, typer.Option(help=EQUIVALENCE)] = "exact",
    answer_fallback: Annotated[str | None, typer.Option(help=FALLBACK)] = None,
    device: Annotated[str | None, typer.Option(help="Where the models run, e.g. cuda or auto; by default the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    concurrent: Annotated[int, typer.Option(help="Programs under way at a time; a request has one for each prompt.")] = 32,
    queue: Annotated[int, typer.Option(help="Programs that wait beyond those; more are refused with status 429.")] = 64,
    sequences: Annotated[int, typer.Option(help="Sequences in a batch of the language model.")] = 256,
    most_particles: Annotated[int, typer.Option(help="Solutions of a request side by side, at most.")] = 256,
    most_tokens: Annotated[int, typer.Option(help="Tokens of a solution that a request may ask for.")] = 4096,
    most_steps: Annotated[int, typer.Option(help="Steps of a solution that a request may ask for.")] = 200,
    most_choices: Annotated[int, typer.Option(help="Answers (n) and prompts of a request, at most.")] = 16,
    body_bytes: Annotated[int, typer.Option(help="Length of a request's body, at most.")] = 1 << 20,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may take, its wait included.")] = 300.0,
    grace: Annotated[float, typer.Option(help="Seconds for requests under way to finish after SIGTERM.")] = 30.0,
    runs: Annotated[int, typer.Option(help="Pages of runs kept at a time; 0 draws none.")] = 64,
    run_seconds: Annotated[float, typer.Option(help="Seconds that a page of a run is kept.")] = 900.0,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every request, warnings and tracebacks, which may quote requests.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help=LOG_JSON)] = False,
    **options: Any,
) -> None:
    """Answer requests of any OpenAI client with a method's answer, and tell why it was chosen (needs the extra serve).

    Clients choose a method by the model's name, such as NAME:best-of-n-8, see /v1/models. SIGTERM or Ctrl-C ends the server when requests
    under way have finished.
    """
    log = JsonLog() if log_json else None
    with reported(verbose, log), flagged():
        judge = judge_options(options)
        limits = _limits(
            body_bytes=body_bytes,
            particles=most_particles,
            tokens=most_tokens,
            steps=most_steps,
            choices=most_choices,
            concurrent=concurrent,
            queue=queue,
            sequences=sequences,
            deadline=deadline,
            grace=grace,
            runs=runs,
            run_seconds=run_seconds,
        )
        chosen_reward = RewardChoice.of(lm, prm, reward, judge)
        thinking = thinking_options(options)
        settings = Settings(
            lm=lm,
            reward=chosen_reward,
            method=method if method is not None else "self-consistency" if chosen_reward.kind == "none" else "smc",
            preset=preset,
            max_steps=max_steps,
            max_tokens=max_tokens,
            max_tokens_completion=max_tokens_completion,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=unescaped(stop),
            finish=finish,
            equivalence=equivalence,
            answer_fallback=answer_fallback,
            **thinking,
            options=given(options),
            dtype=dtype,
        )
        prm_name = chosen_reward.name if chosen_reward.kind == "prm" else None
        served = (
            remote.Served("lm", lm, lm_model, lm_tokenizer),
            remote.Served("prm", prm_name or "", prm_model, prm_tokenizer, prm_family),
        )
        lm_options = prompt_options(system_prompt, chat_template, settings.thinking)
        settings.check()
        for each in served:
            each.check()
        if calibration is not None and prm_name is None:
            raise ValueError(f"--calibration is for a process reward model, and the reward is {chosen_reward}")
        scale = None if calibration is None else loading.load_calibration(calibration, str(prm_name))
        loading.check_device(device)
        accepted = _keys(keys)
        default = _default(settings, most_particles)
        bound = _bind(host, port, bool(accepted), log)
    _log_requests(verbose)
    with bound, loading.quiet(verbose or log_json), log or nullcontext(), reported(verbose, log):
        from ..gateway import Gateway, GatewayServer, Served

        language_model = remote.load_lm(served[0], device, dtype, **lm_options)
        reward_model = chosen_reward.load(
            language_model,
            lambda each: remote.load_lm(remote.Served("lm", each), device, dtype),
            lambda each: remote.load_prm(served[1], device, scale, dtype),
            partial(loading.load_orm, device=device, dtype=dtype),
        )
        choose_threads([language_model, reward_model])
        equivalent = None if equivalence == "exact" else settings.equivalent()
        known = name or (str(getattr(language_model, "model", "")) if is_address(lm) else re.sub(r"[^\w.-]", "-", Path(lm).resolve().name))
        gateway = Gateway(
            Served(known, language_model, reward_model, settings.model_keywords(), equivalent),
            default,
            limits,
        )
        server = GatewayServer(
            gateway,
            host,
            keys=accepted,
            bound=bound,
            listening=lambda address: _ready(address, known, log),
            ending=lambda programs: _ending(programs, grace, log),
        )
        server.run_until_stopped()


def _limits(**values: Any) -> Any:
    """
    :raises ValueError: for a bound out of range, naming the option, or without the extra.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ppl-llm serve needs the package {error.name}: pip install 'ppl-llm[serve]'") from error
    from ..gateway.limits import Limits

    flags = {"particles": "most-particles", "tokens": "most-tokens", "steps": "most-steps", "choices": "most-choices"}
    try:
        return Limits(**values)
    except ValueError as error:
        word, _, rest = str(error).partition(" ")
        raise ValueError(f"--{flags.get(word, word).replace('_', '-')} {rest}") from error


def _default(settings: Settings, most_particles: int) -> Choice:
    """The method of requests that name none.

    :raises ValueError: if it is more than a request may ask for.
    """
    from ..gateway.catalogue import Catalogue, Choice

    default = Choice(settings.named.method, settings.given(), dict(settings.named.model_options))
    Catalogue("", default, settings.reward.kind != "none", most_particles).check_default()
    return default


def _bind(host: str, port: int, keys: bool, log: JsonLog | None) -> socket:
    from ..gateway.guard import is_loopback
    from ..gateway.server import bind

    bound = bind(host, port)
    if not keys and not is_loopback(host):
        tell(f"everybody who reaches {host} can use this server: --keys FILE or PPL_LLM_SERVE_KEYS asks for a key", log)
    return bound


def _keys(path: Path | None) -> Keys:
    from ..gateway.guard import Keys

    try:
        return Keys.read(path)
    except OSError as error:
        raise OSError(f"--keys {path}: {error.strerror}; give a file that exists and can be read") from error


def _log_requests(verbose: bool) -> None:
    """What fails is logged, without any text of requests; with ``verbose`` every request, and tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("ppl_llm.gateway")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)


def _ready(address: str, name: str, log: JsonLog | None) -> None:
    if log is not None:
        log.event("listening", address=address, model=name)
    else:
        typer.secho(f"{name} at {address} (for OpenAI's clients: {address}/v1)", err=True)


def _ending(programs: int, grace: float, log: JsonLog | None) -> None:
    if programs:
        tell(f"ending in at most {grace:g} s; programs under way: {programs}; a second Ctrl-C or SIGTERM ends them at once", log)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=_EXAMPLES)(serve)
