"""What a stream says is the final message, byte for byte, whatever the method; and streams that say too much too early are noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
import torch

from ppl_llm import TabularLM, TabularReward
from ppl_llm.gateway import Gateway, Limits, Served
from ppl_llm.gateway.settled import SettledText
from ppl_llm.methods import SOLVING, Method
from tests.helpers.gateway import Running, running
from tests.ppl_llm.gateway.test_settled import FollowsTheFirst, Particle

LM = TabularLM(torch.tensor([[1.0, 30, 2, 0], [1, 0, 30, 1], [20, 1, 0, 0], [1, 0, 0, 0]]).log(), ["a", "b", ";", "$"], eos="$")
"""After a comes b, after b comes ; and after ; comes a, most of the time."""
REWARD = TabularReward(torch.tensor([0.8, -0.9, 0.3, 0.0]))
OPTIONS = {"stop": ";", "max_tokens": 4, "max_steps": 4, "answer_fallback": "text"}
SEEDS = range(3)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(served=Gateway(Served("table", LM, REWARD, OPTIONS), limits=Limits(runs=0))) as up:
        yield up


def offered(server: Running, method: str) -> str:
    """The smallest of the models under a method that clients are told of."""
    models = [name for name in server.gateway.models() if name.rpartition("-")[0] == f"table:{method}"]
    return min(models, key=lambda name: int(name.rpartition("-")[2]))


def spoken(server: Running, **fields: object) -> tuple[list[str], int]:
    """Text of each choice as a client puts it together, and the pieces that it came in."""
    texts, pieces = [""] * int(str(fields.get("n", 1))), 0
    reply = server.http.post("/v1/completions", json={"prompt": "a", "stream": True, **fields})
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    for event in map(json.loads, events):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            pieces += bool(choice["text"])
    return texts, pieces


def said(server: Running, **fields: object) -> list[str]:
    """The messages of the same run without a stream."""
    reply = server.http.post("/v1/completions", json={"prompt": "a", **fields}).json()
    return [choice["text"] for choice in reply["choices"]]


@pytest.mark.parametrize("method", SOLVING)
def test_every_method_streams_its_message(server: Running, method: str) -> None:
    early = 0
    for seed in SEEDS:
        for fields in ({"n": 1, "stop": ["ba", ";ab;a"]}, {"n": 3}):
            asked = {"model": offered(server, method), "seed": seed, **fields}
            texts, pieces = spoken(server, **asked)
            assert [each.encode() for each in texts] == [each.encode() for each in said(server, **asked)]
            early += pieces > len(texts)
    print(method, early)
    assert SOLVING[method].settles or not early, "what may yet change was told"


class SaysTooMuch(FollowsTheFirst):
    """Text of the first particle at once, whatever the others say, and no look back at the end."""

    def rest(self, final: str) -> str:
        return final[len(self.sent) :]


class NeverLooksBack(SettledText):
    """The right rule for methods that settle, without a look back at the end."""

    def rest(self, final: str) -> str:
        return final[len(self.sent) :]


def changed(server: Running, method: str) -> bool:
    for seed in range(8):
        asked = {"model": offered(server, method), "seed": seed}
        if spoken(server, **asked)[0] != said(server, **asked):
            return True
    return False


@pytest.mark.parametrize("method", SOLVING)
def test_x(server: Running, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "settles_under", lambda self, options: True)
    for name, rule in (("first", SaysTooMuch), ("never", NeverLooksBack)):
        monkeypatch.setattr("ppl_llm.gateway.solver.SettledText", rule)
        monkeypatch.setattr("ppl_llm.gateway.gateway.SettledText", rule)
        print(method, name, changed(server, method))
