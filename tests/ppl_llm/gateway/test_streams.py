"""What a stream says is the final message, byte for byte, whatever the method; and streams that say too much too early are noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from ppl_llm import TabularLM, TabularReward
from ppl_llm.context import Context
from ppl_llm.gateway import Gateway, Limits, Served
from ppl_llm.gateway.settled import SettledText
from ppl_llm.methods import SOLVING, Method
from tests.helpers.gateway import Running, running
from tests.ppl_llm.gateway.test_settled import FollowsTheFirst

LOGITS = torch.tensor([[1.0, 30, 2, 0], [1, 0, 30, 1], [20, 1, 0, 0], [1, 0, 0, 0]]).log()
"""After a comes b, after b comes ; and after ; comes a, most of the time."""
VOCABULARY = ["a", "b", ";", "$"]
REWARD = TabularReward(torch.tensor([0.8, -0.9, 0.3, 0.0]))
OPTIONS = {"stop": ";", "max_tokens": 4, "max_steps": 4, "answer_fallback": "text"}
SEEDS = range(2)


class Table(TabularLM):
    """With a hidden state for each token, for methods that compare directions."""

    def hidden_states(self, context: Context, positions: torch.Tensor) -> torch.Tensor:
        tokens = context.tokens.gather(-1, positions.clamp(min=0))
        return torch.nn.functional.one_hot(tokens, len(VOCABULARY)).double() * (positions >= 0)[..., None]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(served=Gateway(Served("table", Table(LOGITS, VOCABULARY, eos="$"), REWARD, OPTIONS), limits=Limits(runs=0))) as up:
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
    assert SOLVING[method].settles or not early, "what may yet change was told"


class NeverLooksBack(SettledText):
    """A stream that is not compared with the solution that was chosen at the end."""

    def rest(self, final: str) -> str:
        return final[len(self.sent) :]


class SaysTooMuch(NeverLooksBack, FollowsTheFirst):
    """Text of the first particle at once, whatever the others say."""


EARLY = [("smc", SaysTooMuch), ("best-of-n", SaysTooMuch), *((name, NeverLooksBack) for name in ("beam-search", "suffix-mh", "mcts"))]


@pytest.mark.parametrize(("method", "rule"), EARLY)
def test_text_that_is_told_too_early_is_noticed(
    server: Running, method: str, rule: type[SettledText], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of one particle where all count, and that of methods which may set aside what all of their particles agree on."""
    monkeypatch.setattr(Method, "settles_under", lambda self, options: True)
    for module in ("progress", "gateway"):
        monkeypatch.setattr(f"ppl_llm.gateway.{module}.SettledText", rule)
    asked = [{"model": offered(server, method), "seed": seed} for seed in range(8)]
    assert any(spoken(server, **each)[0] != said(server, **each) for each in asked)


def test_methods_that_the_language_model_cannot_serve_are_not_offered() -> None:
    with running(served=Gateway(Served("table", TabularLM(LOGITS, VOCABULARY, eos="$"), REWARD, OPTIONS))) as up:
        assert not any("dora" in name for name in up.gateway.models()) and "table:rebase-4" in up.gateway.models()
        reply = up.http.post("/v1/completions", json={"model": "table:dora-4", "prompt": "a"})
        assert reply.status_code == 400 and "hidden states" in reply.json()["error"]["message"]
