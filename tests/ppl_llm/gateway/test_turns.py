"""Requests that have a solution written again: the library's run, and a stream that says nothing of drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyro
import pytest

from ppl_llm import SMC, reasoning, revise
from ppl_llm.programs.revision import ask_again
from tests.helpers.gateway import PROBLEM, Running, models, running
from tests.ppl_llm.gateway.test_streams import NeverLooksBack

CONVERSATION = [
    {"role": "system", "content": "Write one step a line."},
    {"role": "user", "content": "7 and 8"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": PROBLEM},
]
ASKED: dict[str, Any] = {"model": "demo:smc-4", "messages": CONVERSATION, "max_tokens": 30, "ppl": {"rounds": 2}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(runs=0) as up:
        yield up


def test_a_draft_is_shown_in_the_next_turn_of_the_whole_conversation(server: Running) -> None:
    lm, prm = models()
    model = revise(reasoning(lm, prm, max_tokens_completion=30), 2, lambda problem, draft: ask_again(CONVERSATION, draft))
    pyro.set_rng_seed(3)
    posterior = SMC(model, 4).run(CONVERSATION)
    reply = server.chat(**ASKED, seed=3).json()
    chosen = model.choose_particle(posterior.value, posterior.weights.tolist(), model.choose(posterior))
    assert reply["choices"][0]["message"]["content"] == posterior.value.text[chosen]
    assert reply["ppl"]["log_evidence"] == pytest.approx(float(posterior.log_evidence), abs=1e-4)
    assert reply["ppl"]["cost"]["tokens_sampled"] == posterior.cost["tokens_sampled"]


def streamed(server: Running, seed: int) -> str:
    lines = server.chat(**ASKED, seed=seed, stream=True).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


def whole(server: Running, seed: int) -> str:
    text: str = server.chat(**ASKED, seed=seed).json()["choices"][0]["message"]["content"]
    return text


def test_a_stream_says_nothing_of_drafts(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [streamed(server, seed) for seed in range(3)] == [whole(server, seed) for seed in range(3)]

    monkeypatch.setattr("ppl_llm.gateway.progress.past_drafts", lambda rounds, sites: True)
    monkeypatch.setattr("ppl_llm.gateway.gateway.SettledText", NeverLooksBack)
    assert any(streamed(server, seed) != whole(server, seed) for seed in range(3))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ppl": {"rounds": 0}}, "ppl.rounds"),
        ({"ppl": {"rounds": 9}}, "ppl.rounds"),
        ({"ppl": {"rounds": 2, "feedback": "verifier:/etc/passwd:f"}}, "ppl.feedback"),
        ({"ppl": {"rounds": 2, "constraint": {"choices": ["a"]}}}, "ppl.rounds"),
        ({"messages": [*CONVERSATION, {"role": "assistant", "content": "First"}], "ppl": {"rounds": 2}}, "ppl.rounds"),
    ],
)
def test_what_no_request_may_ask_of_turns(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.chat(**{**ASKED, **fields})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_a_prompt_that_is_no_chat_has_no_turns(server: Running) -> None:
    reply = server.http.post("/v1/completions", json={"model": "demo:smc-4", "prompt": "7 and", "ppl": {"rounds": 2}})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "ppl.rounds"
