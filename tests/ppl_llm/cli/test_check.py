"""``ppl-llm check`` and ``ppl-llm solve`` on servers in the process, and on directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer
from typer.testing import CliRunner

from ppl_llm import TransformersLM, TransformersPRM
from ppl_llm.cli import app
from ppl_llm.cli.lm_checks import TOLERANCES
from ppl_llm.demo import LM_DIR, PRM_DIR, example
from ppl_llm.lm.decoding.cached_decoder import CachedDecoder
from tests.helpers.fake_server import FakeServer
from tests.helpers.tiny_models import write_lm, write_prm
from tests.helpers.tiny_prms import WRITE

URL = "http://fake:8000/v1"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def checked(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = run("check", *arguments, "--json")
    assert result.exit_code == code, result.output
    report = json.loads(result.stdout)
    assert report["ok"] == (code == 0)
    return report | {found["name"]: found for found in report["findings"]}


class Hosts(httpx.AsyncBaseTransport):
    """Several servers, by host name."""

    def __init__(self, **servers: FakeServer) -> None:
        self.transports = {name: server.transport() for name, server in servers.items()}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host not in self.transports:
            raise httpx.ConnectError("no such host", request=request)
        return await self.transports[request.url.host].handle_async_request(request)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts servers in place of the network."""

    def put(**servers: FakeServer) -> None:
        hosts = Hosts(**servers)
        real = httpx.AsyncClient
        monkeypatch.setattr(httpx, "AsyncClient", lambda **options: real(**{**options, "transport": hosts}))

    return put


@pytest.fixture(scope="module")
def demo_logits() -> Any:
    net = TransformersLM.from_pretrained("demo").model

    @torch.no_grad()
    def logits(ids: list[int]) -> Tensor:
        return net(torch.tensor([ids]), use_cache=False).logits[0, -1]

    return logits


def bigram(ids: list[int]) -> Tensor:
    """A model of the demo's vocabulary that takes no time."""
    return torch.randn(422, generator=torch.Generator().manual_seed(ids[-1]))


def demo_lm(logits: Any, model: str = "demo-lm", **options: Any) -> FakeServer:
    return FakeServer(logits, AutoTokenizer.from_pretrained(LM_DIR), max_model_len=1024, model=model, **options)


@pytest.fixture(scope="module")
def demo_pool() -> Any:
    net = TransformersPRM.from_pretrained("demo").model

    @torch.no_grad()
    def pool(ids: list[int]) -> Tensor:
        return net(torch.tensor([ids]), use_cache=False)[0]

    return pool


def demo_prm(pool: Any, model: str = "demo-prm") -> FakeServer:
    tokenizer = AutoTokenizer.from_pretrained(PRM_DIR)
    pooler = {"step_tag_id": tokenizer.convert_tokens_to_ids("<extra_0>")}
    return FakeServer(None, tokenizer, pool=pool, pooler=pooler, max_model_len=1024, model=model)


def test_the_models_of_this_package() -> None:
    lm = checked("demo")
    assert lm["kind"] == "lm" and all(found["ok"] is not False for found in lm["findings"])
    assert {"seeds", "stop strings", "prefix cache", "log-probabilities of given steps"} <= lm.keys()
    prm = checked("demo", "--kind", "prm")
    assert "qwen" in prm["family"]["detail"] and "'<extra_0>' is 3" in prm["family"]["detail"]
    result = run("check", "demo-weak")
    assert result.exit_code == 0 and "known steps: " in result.stdout and "Second: 18 - 5 = 13" in result.stdout


def test_directories_are_recognised_and_a_reward_model_that_knows_nothing_fails(tmp_path: Path) -> None:
    assert checked(str(write_lm(tmp_path / "lm", max_position_embeddings=2048)))["kind"] == "lm"
    found = checked(str(write_prm(tmp_path / "prm", max_position_embeddings=1024)), code=1)
    assert found["kind"] == "prm" and found["family"]["ok"]
    assert found["known steps"]["ok"] is False and "--family" in found["known steps"]["remedy"]
    _, write = WRITE["rlhflow"]
    result = run("check", str(write(tmp_path / "other")), "--family", "rlhflow")
    assert "family: rlhflow; token ids: '+' is 15, '-' is 17" in result.stdout


@pytest.mark.parametrize("chats", [False, True])
def test_a_tokenizer_that_ends_whatever_it_reads_is_told(chats: bool, tmp_path: Path) -> None:
    """Prompts go without that end, so that all other checks pass; with a chat template nothing is appended, and there is nothing to say."""
    directory = write_lm(tmp_path / "lm", max_position_embeddings=2048)
    tokens = AutoTokenizer.from_pretrained(directory)
    end = tokens.eos_token
    tokens.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokens.eos_token_id)])
    if not chats:
        tokens.chat_template = None
        (directory / "chat_template.jinja").unlink(missing_ok=True)
    tokens.save_pretrained(directory)
    assert AutoTokenizer.from_pretrained(directory)("1")["input_ids"][-1] == tokens.eos_token_id
    found = checked(str(directory))
    assert ("prompts" in found) == (not chats)
    if not chats:
        assert found["prompts"]["ok"] is None and "appends an end of text" in found["prompts"]["detail"]
        assert "go without it" in found["prompts"]["remedy"]
    lm = TransformersLM.from_pretrained(directory)
    for problem in ("What is 12 + 30?", [{"role": "user", "content": "12 + 30?"}, {"role": "assistant", "content": "It is"}]):
        if chats or isinstance(problem, str):
            assert lm.start(problem).tokens.flatten()[-1] not in lm.eos_ids
    assert tokens.eos_token_id not in lm.encode("It is 42.")


@pytest.mark.parametrize("family", WRITE)
def test_a_reward_model_with_such_a_tokenizer_is_read_as_without(family: str, tmp_path: Path) -> None:
    """The scores of known steps are the same, whatever they are."""
    directory = WRITE[family][1](tmp_path / family)

    def scores() -> list[str]:
        report = json.loads(run("check", str(directory), "--family", family, "--json").stdout)
        return [found["detail"].rpartition(" (")[0] for found in report["findings"] if found["name"] in ("family", "known steps")]

    plain, tokens = scores(), AutoTokenizer.from_pretrained(directory)
    end = tokens.eos_token
    tokens.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokens.eos_token_id)])
    tokens.save_pretrained(directory)
    assert AutoTokenizer.from_pretrained(directory)("1")["input_ids"][-1] == tokens.eos_token_id
    assert scores() == plain and len(plain) == 2


def test_a_server_with_everything(network: Any) -> None:
    server = demo_lm(bigram, prefix_cache=True)
    network(fake=server)
    found = checked(URL, "--tokenizer", str(LM_DIR))
    assert found["kind"] == "lm" and "demo-lm" in found["model"]["detail"]
    for name in ("token ids", "samples", "seeds", "stop strings", "log-probabilities of sampled steps", "prefix cache"):
        assert found[name]["ok"] is True, found[name]
    assert "raw" in found["meaning of log-probabilities"]["detail"]


class Poor(FakeServer):
    """Ignores seeds, stop strings and requests for scores, and keeps no prefixes."""

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = super()._completions({name: value for name, value in body.items() if name not in ("seed", "stop", "logprobs")})
        return reply | {"usage": {**reply["usage"], "prompt_tokens_details": {"cached_tokens": 0}}}


def test_a_server_with_little(network: Any) -> None:
    server = demo_lm(bigram, echo=False)
    server.__class__ = Poor
    network(fake=server)
    found = checked(URL, "--tokenizer", str(LM_DIR), code=1)
    for name in ("seeds", "log-probabilities of sampled steps", "log-probabilities of given steps", "prefix cache"):
        assert found[name]["ok"] is False and found[name]["remedy"], found[name]


def test_servers_that_cannot_be_used_are_one_line(network: Any) -> None:
    network(fake=demo_lm(bigram))
    for arguments, message in [
        ((URL, "--model", "other"), "does not serve 'other'. It serves: demo-lm"),
        (("http://nowhere/v1",), "http://nowhere/v1/models did not answer: ConnectError no such host"),
        (("http://me:secret@fake/v1",), "must not hold a user name or password"),
        ((str(LM_DIR), "--model", "x"), "go with the address of a server"),
        (("demo", "--kind", "both"), "--kind must be one of auto, lm, prm"),
    ]:
        result = run("check", *arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_solve_on_servers_is_solve_on_their_models(network: Any, demo_logits: Any, demo_pool: Any) -> None:
    """Both models behind servers: an answer, the options in the report, the work counted; the same seed gives the same report."""
    network(fake=demo_lm(demo_logits), judge=demo_prm(demo_pool))
    served = ["--lm", URL, "--lm-model", "demo-lm", "--lm-tokenizer", str(LM_DIR)]
    served += ["--prm", "http://judge/v1", "--prm-tokenizer", str(PRM_DIR)]
    arguments = ["solve", example(1).text, *served, "--particles", "3", "--json"]
    reports = []
    for _ in range(2):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    first, again = reports
    assert first["answer"] == example(1).answer and first["finished"] == 3
    assert first["settings"]["lm"] == URL and first["settings"]["lm_model"] == "demo-lm"
    assert first["cost"]["lm_requests"] >= 3 and first["cost"]["prm_requests"] >= 2
    assert (first["log_evidence"], first["best"]) == (again["log_evidence"], again["best"])


def test_an_evaluation_loads_models_on_servers(network: Any, demo_pool: Any) -> None:
    from ppl_llm.evaluation.source import Models

    network(fake=demo_lm(bigram, model="demo"), judge=demo_prm(demo_pool, model="demo"))
    program = Models(URL, "http://judge/v1").load()
    assert repr(program.lm) == f"OpenAILM({URL!r}, 'demo')" and repr(program.prm) == "RemotePRM('http://judge/v1', 'demo', 'qwen')"


@pytest.mark.parametrize("option", ["--lm-model", "--prm-tokenizer"])
def test_options_of_servers_without_a_server(option: str) -> None:
    result = run("solve", example(1).text, option, "x")
    assert result.exit_code == 2 and f"{option} goes with the address of a server" in result.stderr


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_healthy_model_passes_in_every_number_format(dtype: str, tmp_path: Path) -> None:
    """In bfloat16 two ways through this model differ by more than the tolerance of float32."""
    directory = str(write_lm(tmp_path / "lm", max_position_embeddings=2048, num_hidden_layers=6))
    found = checked(directory, "--dtype", dtype)
    gap = float(found["log-probabilities of sampled steps"]["detail"].split()[7])
    assert (gap > TOLERANCES["float32"]) == (dtype == "bfloat16") and gap < TOLERANCES[dtype]


def test_a_model_whose_cached_keys_are_wrong_fails_in_bfloat16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(write_lm(tmp_path / "lm", max_position_embeddings=2048, num_hidden_layers=6))
    finish = CachedDecoder.finish

    def beside_itself(self: CachedDecoder, logits: Tensor, alive: Tensor) -> None:
        finish(self, logits.roll(1, -1), alive)

    monkeypatch.setattr(CachedDecoder, "finish", beside_itself)
    assert checked(directory, "--dtype", "bfloat16", code=1)["log-probabilities of sampled steps"]["ok"] is False
