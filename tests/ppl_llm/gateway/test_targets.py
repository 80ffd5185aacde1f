"""Powers, constraints and rules for stopping through the gateway, on a server without a reward."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyro
import pytest

from ppl_llm import SMC, reasoning
from ppl_llm.gateway import Gateway, Served
from ppl_llm.programs.step_proposal import StepProposal
from tests.helpers.gateway import PROBLEM, Running, models, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    lm, _ = models()
    with running(served=Gateway(Served("bare", lm, None, {"max_tokens_completion": 60}))) as up:
        yield up


def ppl(server: Running, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Text and reasons of an answer."""
    reply = server.chat(**{"model": "bare", "seed": 1, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"], reply.json()["ppl"]


def blamed(server: Running, **fields: Any) -> str:
    reply = server.chat(**{"model": "bare", **fields})
    assert reply.status_code == 400, reply.text
    param: str = reply.json()["error"]["param"]
    return param


def test_a_power_needs_no_reward(server: Running) -> None:
    """By the method's name, by an option of the model's name, and as a field: each is the library's run."""
    lm, _ = models()
    model = reasoning(lm, None, max_tokens_completion=60, power=4.0)
    pyro.set_rng_seed(1)
    expected = SMC(model, 4, proposals=StepProposal(temperature=0.25)).run([{"role": "user", "content": PROBLEM}])
    chosen = model.choose_particle(expected.value, expected.weights.tolist(), model.choose(expected))
    for fields in (
        {"model": "bare:power-smc-4"},
        {"model": "bare:smc-4:power=4"},
        {"ppl": {"method": "smc", "particles": 4, "power": 4}},
    ):
        text, told = ppl(server, **fields)
        assert text == expected.value.text[chosen] and told["power"] == 4
        assert told["log_evidence"] == pytest.approx(float(expected.log_evidence), abs=1e-5)
    assert ppl(server, model="bare:power-smc-4", ppl={"power": 2})[1]["log_evidence"] != told["log_evidence"]
    assert blamed(server, model="bare:smc-4") == "model", "without a power it needs a reward"
    assert blamed(server, ppl={"method": "smc", "power": 1}) == "model"
    assert blamed(server, ppl={"method": "smc", "power": 10_000}) == "ppl.power"


def test_streams_at_a_power(server: Running) -> None:
    text, _ = ppl(server, model="bare:power-smc-4")
    streamed = server.chat(model="bare:power-smc-4", seed=1, stream=True).text
    assert '"power":4.0' in streamed and "data: [DONE]" in streamed
    assert "".join(re.findall(r'"delta":\{"content":"(.*?)"\}', streamed)).encode().decode("unicode_escape") == text


def test_a_constraint_weighs_where_no_reward_does(server: Running) -> None:
    whole = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    for model in ("bare:smc-4", "bare:power-smc-4", "bare:importance-4"):
        text, told = ppl(server, model=model, response_format=whole, max_tokens=3)
        assert int(text) is not None and told["answer"] == text and told["log_evidence"] < 0
        assert re.fullmatch("[0-9]{2}", ppl(server, model=model, ppl={"constraint": {"regex": "[0-9]{2}"}})[0])
        assert ppl(server, model=model, ppl={"constraint": {"choices": ["yes", "no"]}})[0] in ("yes", "no")
    both = {"constraint": {"choices": ["yes", "no"], "regex": "y.*"}}
    assert ppl(server, model="bare:smc-4", ppl=both)[0] == "yes"
    reply = server.http.post("/v1/completions", json={"model": "bare:smc-4", "prompt": "3 and", "ppl": both}).json()
    assert reply["choices"][0]["text"] == "yes"


@pytest.mark.parametrize(
    ("constraint", "param"),
    [
        ({"file": "/etc/passwd"}, "ppl.constraint.file"),
        ("x", "ppl.constraint"),
        ({"regex": "("}, "ppl.constraint"),
        ({"regex": ""}, "ppl.constraint.regex"),
        ({"regex": "a" * 1001}, "ppl.constraint.regex"),
        ({"choices": []}, "ppl.constraint.choices"),
        ({"choices": [1]}, "ppl.constraint.choices"),
        ({"choices": ["a"] * 1001}, "ppl.constraint.choices"),
    ],
)
def test_constraints_that_are_refused(server: Running, constraint: Any, param: str) -> None:
    assert blamed(server, model="bare:smc-4", ppl={"constraint": constraint}) == param


def test_schemas_that_are_refused(server: Running) -> None:
    """A large one takes seconds to compile, in which nobody else is answered; none is fetched from anywhere."""
    large = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5000)}}
    for schema in (large, {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "file:///etc/passwd"}):
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        reply = server.chat(model="bare:smc-4", response_format=form)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "response_format"
        assert len(reply.text) < 1000
    assert blamed(server, model="bare:best-of-n-4", ppl={"constraint": {"regex": "a"}}) == "ppl.constraint"


def test_rules_for_stopping(server: Running) -> None:
    _, told = ppl(server, ppl={"method": "self-consistency", "particles": 12, "until": "same:2", "batch": 2})
    assert told["num_particles"] < 12 and told["options"]["until"] == "same:2"
    assert ppl(server, ppl={"method": "power-smc", "particles": 4, "until": "beta:0.6"})[1]["power"] == 4
    assert blamed(server, ppl={"method": "power-smc", "until": "beta:7"}) == "ppl.until"
    assert blamed(server, ppl={"method": "power-smc", "until": 0.5}) == "ppl.until"
