"""What the tests of README and docs share: code blocks, command lines, and a place to run them in."""

from __future__ import annotations

import contextlib
import doctest
import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from markdown_it import MarkdownIt
from torch import Tensor

from ppl_llm import TransformersLM, TransformersPRM
from ppl_llm.demo import LM_DIR, PRM_DIR
from tests.helpers.fake_server import FakeServer
from tests.helpers.tiny_models import write_orm
from tests.helpers.tiny_prms import write_rlhflow, write_shepherd, write_skywork

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "# not run by the tests: "
"""How a Python block begins that cannot run here; the reason stands behind it, where readers see it."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """All fenced blocks, with the number of their first line."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    return [Block(t.info.split(" ")[0], t.content, t.map[0] + 2) for t in tokens if t.type == "fence" and t.map is not None]


def run(path: Path) -> dict[str, Any]:
    """Run the Python blocks of a page one after another, ``pycon`` blocks as doctests.

    A ``text`` block right after a Python block is what that block prints; ``...`` stands for anything.

    :returns: the names that they leave behind.
    :raises AssertionError: if a block prints something else than the page shows.
    """
    names: dict[str, Any] = {"__name__": path.stem}
    printed: str | None = None
    for block in blocks(path):
        shown, printed = printed, None
        if block.language == "python" and not block.text.startswith(NOT_RUN):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), names)
            printed = output.getvalue()
        elif block.language == "text" and shown is not None:
            same = doctest.OutputChecker().check_output(block.text, shown, doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            assert same, f"{path.name}:{block.line} shows\n{block.text}but the block before it prints\n{shown}"
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, path.name, str(path), block.line - 1)
            test.globs = names  # the page's own, so that later blocks see what this one defines
            doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(test, clear_globs=False)
    return names


class Command(NamedTuple):
    """A command line of a page.

    :ivar list words: the command and its arguments.
    :ivar str stdin: what is piped into it.
    """

    words: list[str]
    stdin: str | None


def commands(block: Block) -> Iterator[Command]:
    """The command lines of a block, without comments and prompts. A pipe may begin with ``echo TEXT |``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        stdin = None
        if words[:1] == ["echo"] and "|" in words:
            stdin, words = " ".join(words[1 : words.index("|")]) + "\n", words[words.index("|") + 1 :]
        if words:
            assert not {">", "|", "&&", ";"} & set(words), f"the tests do not understand the command line {line!r}"
            yield Command(words, stdin)


def furnish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``folder`` the working directory, with stand-ins for the published models and servers that the pages name.

    The demo models stand in for Qwen's, tiny random ones for other families. A server in this process answers on ports 8000 and 8001 of
    ``host``.
    """
    monkeypatch.chdir(folder)
    links = {"Qwen2.5-1.5B-Instruct": LM_DIR, "Qwen2.5-0.5B-Instruct": LM_DIR, "Qwen2.5-Math-PRM-7B": PRM_DIR}
    for parent in (folder / "Qwen", folder / "path" / "to"):
        parent.mkdir(parents=True)
        for name, target in links.items():
            (parent / name).symlink_to(target, target_is_directory=True)
    write_skywork(folder / "Skywork" / "Skywork-o1-Open-PRM-Qwen-2.5-1.5B")
    write_shepherd(folder / "peiyi9979" / "math-shepherd-mistral-7b-prm")
    write_orm(folder / "path" / "to" / "Skywork-Reward-V2-Qwen3-0.6B", seed=4)  # it happens to prefer the right answer of `check`
    write_rlhflow(folder / "RLHFlow" / "Llama3.1-8B-PRM-Deepseek-Data")
    servers: dict[int, httpx.AsyncBaseTransport] = {}

    async def answer(self: Any, request: httpx.Request) -> httpx.Response:
        port = request.url.port
        assert request.url.host == "host" and port in (8000, 8001), f"a page asks for {request.url}, which is not among its servers"
        if port not in servers:
            servers[port] = (_language_server() if port == 8000 else _reward_server()).transport()
        return await servers[port].handle_async_request(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)


def _language_server() -> FakeServer:
    lm = TransformersLM.from_pretrained("demo")

    @torch.no_grad()
    def next_logits(ids: list[int]) -> Tensor:
        logits: Tensor = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        return logits

    return FakeServer(next_logits, lm.tokenizer, model="Qwen/Qwen2.5-1.5B-Instruct")


def _reward_server() -> FakeServer:
    prm = TransformersPRM.from_pretrained("demo")
    net: Any = prm.model

    @torch.no_grad()
    def outputs(ids: list[int]) -> Tensor:
        hidden = net.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        scores: Tensor = net.score(hidden)
        return scores

    tag = prm.tokenizer.convert_tokens_to_ids("<extra_0>")
    return FakeServer(None, prm.tokenizer, pool=outputs, pooler={"step_tag_id": tag}, model="Qwen/Qwen2.5-Math-PRM-7B")
