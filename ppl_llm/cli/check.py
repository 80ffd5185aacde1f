"""The command ``check``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from ..remote.address import is_address
from . import loading, remote
from .commands import app
from .errors import reported
from .findings import Findings
from .loading import DTYPE

FAILED = 1
_KINDS = ("auto", "lm", "prm", "orm")


@app.command(
    epilog="Examples:\n\nppl-llm check demo\n\nppl-llm check ~/models/Qwen2.5-Math-PRM-7B --device cuda"
    "\n\nppl-llm check http://host:8000/v1 --model NAME\n\nppl-llm check http://host:8001/v1 --kind prm --family rlhflow"
)
def check(
    model_or_url: Annotated[str, typer.Argument(help="demo, a directory, a Hub name, or the address of a server.", show_default=False)],
    kind: Annotated[
        str, typer.Option(help="lm: a language model. prm: a process reward model. orm: a classifier of answers. auto finds out.")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Name that the server knows the model by.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or Hub name of the server's tokenizer; by default the model's.")] = None,
    family: Annotated[str | None, typer.Option(help="Of a reward model: qwen, skywork, math-shepherd or rlhflow.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model runs, e.g. cuda or auto; by default the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """Load a model, or probe a server, and show what works, each with what to do where it does not.

    The exit code is 1 if something does not work.
    """
    findings = Findings(None if as_json else Console(soft_wrap=True))
    with loading.quiet(verbose), reported(verbose):
        if kind not in _KINDS:
            raise ValueError(f"--kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        loading.check_device(device)
        chosen = kind if kind != "auto" else "prm" if family is not None else _found_kind(model_or_url, model)
        served = remote.Served(chosen, model_or_url, model, tokenizer, family)
        if not is_address(model_or_url) and (model, tokenizer) != (None, None):
            raise ValueError(f"--model and --tokenizer go with the address of a server, such as http://host:8000/v1, not {model_or_url!r}")
        _check(chosen, served, device, dtype, findings)
    if as_json:
        typer.echo(json.dumps({"model": model_or_url, "kind": chosen, **findings.as_dict()}, indent=2))
    if not findings.ok:
        raise typer.Exit(FAILED)


def _check(kind: str, served: remote.Served, device: str | None, dtype: str | None, findings: Findings) -> None:
    if kind == "lm":
        from .lm_checks import LMChecks

        LMChecks(remote.load_lm(served, device, dtype), findings).run()
    elif kind == "orm":
        from .orm_checks import ORMChecks

        ORMChecks(loading.load_orm(served.where, False, device, dtype), findings).run()
    else:
        from .prm_checks import PRMChecks

        PRMChecks(remote.load_prm(served, device, dtype=dtype), findings).run()


def _found_kind(name: str, model: str | None) -> str:
    """``lm``, ``prm`` or ``orm``."""
    if is_address(name):
        with remote.importing():
            return _served_kind(name, model)
    if name.startswith("demo"):
        return "lm" if name == "demo" else "prm"
    from ..lm.loading import is_gguf, load_tokenizer, locate
    from ..reward.prm.families import detect_family, read_config

    source = locate(name, "lm")
    if is_gguf(source):
        return "lm"
    config = read_config(source)
    try:
        detect_family(source, config, load_tokenizer(source))
    except ValueError:
        architecture = (config.get("architectures") or [""])[0]
        return "orm" if architecture.endswith("ForSequenceClassification") else "lm"
    return "prm"


def _served_kind(address: str, model: str | None) -> str:
    """A server that completes has a language model; a '+/-' reward model looks the same, and is checked with ``--kind prm``."""
    from ..remote.client import ServerClient
    from ..remote.errors import ServerError
    from ..remote.served import ServedModel

    client = ServerClient(address, max_attempts=2)
    body: dict[str, Any] = {"model": ServedModel.find(client, model).name, "prompt": "1", "max_tokens": 1}
    try:
        client.post(f"{client.address.api}/completions", [body], lambda i, reply: reply["choices"])
    except ServerError as error:
        if error.status in (None, 401, 403):
            raise
        return "prm"
    return "lm"
