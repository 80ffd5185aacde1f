"""A language model on another server behind the gateway: requests of several clients are under way there at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pyro
import pytest
import torch

from ppl_llm import OpenAILM, TabularReward, reasoning
from ppl_llm.gateway import Gateway, Served
from ppl_llm.inference import SMC
from ppl_llm.lm.prompts import PlainText
from tests.helpers.fake_network import Fault
from tests.helpers.fake_server import FakeServer
from tests.helpers.gateway import PATIENCE, Running, running, until
from tests.helpers.served_table import remote, serve

REWARD = TabularReward(torch.tensor([0.8, -0.4, 0.2, 0.0]))
OPTIONS = {"stop": ";", "max_tokens": 3, "max_steps": 3}


def gateway(server: FakeServer, **options: object) -> Gateway:
    lm: OpenAILM = remote(server, **options)
    return Gateway(Served("served", lm, REWARD, dict(OPTIONS)))


def ask(up: Running, seed: int) -> httpx.Response:
    return up.http.post("/v1/completions", json={"model": "served:smc-4", "prompt": "ab", "seed": seed})


def test_steps_of_several_requests_overlap_and_none_is_changed() -> None:
    server = serve(delay=0.05)
    served = gateway(server)
    expected = []
    model = reasoning(remote(serve()), REWARD, **OPTIONS)  # type: ignore[arg-type]
    for seed in range(6):
        pyro.set_rng_seed(seed)
        posterior = SMC(model, 4).run(PlainText("ab"))
        chosen = model.choose_particle(posterior.value, posterior.weights.tolist(), model.choose(posterior))
        expected.append((posterior.value.text[chosen], pytest.approx(float(posterior.log_evidence), abs=1e-5)))
    with running(served=served) as up, ThreadPoolExecutor(6) as pool:
        replies = [reply.json() for reply in pool.map(lambda seed: ask(up, seed), range(6))]
    assert [(reply["choices"][0]["text"], reply["ppl"]["log_evidence"]) for reply in replies] == expected
    assert server.most_under_way > 4, "the steps of one request at a time"


def test_a_client_that_hangs_up_cancels_what_it_has_asked_for() -> None:
    server = serve(faults=lambda call: Fault("slow"))
    with running(served=gateway(server)) as up:
        with pytest.raises(httpx.ReadTimeout):
            up.http.post("/v1/completions", json={"model": "served:smc-4", "prompt": "ab"}, timeout=0.5)
        until(lambda: server.cancelled == 4)
        until(up.idle)


def test_a_server_that_fails_is_no_fault_of_the_client() -> None:
    server = serve(faults=lambda call: Fault("status", status=500))
    with running(served=gateway(server, max_attempts=2)) as up:
        reply = up.http.post("/v1/completions", json={"model": "served:smc-4", "prompt": "ab"}, timeout=PATIENCE)
        assert reply.status_code == 502 and reply.json()["error"]["code"] == "upstream_failed"
