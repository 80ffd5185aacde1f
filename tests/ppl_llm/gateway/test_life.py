"""Many clients at once, clients that go away, deadlines, failures, and the end of the server."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ppl_llm import FunctionReward
from ppl_llm.demo import Problem, example
from ppl_llm.gateway import Gateway, Limits, Served
from tests.helpers.gateway import ENDLESS, PATIENCE, PROBLEM, Running, models, running, until

SECRET = "a sentence that is nobody's business"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(concurrent=8, queue=40) as up:
        yield up


def body(problem: str = PROBLEM, **fields: Any) -> dict[str, Any]:
    return {"model": "demo:smc-4", "messages": [{"role": "user", "content": problem}], **fields}


def first_number(text: str) -> str:
    found = re.search(r"\d+", text)
    return "" if found is None else found[0]


def test_answers_belong_to_their_problems_whatever_others_do(server: Running) -> None:
    """A fifth of the clients hang up in the middle of a stream, another fifth sends nonsense."""
    problems: list[Problem] = [example(1 + i % 3) for i in range(3)]

    def client(number: int) -> None:
        problem = problems[number % 3].text
        kind = number % 5
        if kind == 3:
            with server.http.stream("POST", "/v1/chat/completions", json=body(problem, model=ENDLESS, stream=True)) as stream:
                assert stream.status_code == 200 and next(stream.iter_lines())
            return
        if kind == 4:
            assert server.chat(problem, temperature="hot").status_code == 400
            return
        alone = body(problem, seed=number, model="demo:self-consistency-3", temperature=0.1)
        if kind == 2:
            lines = server.http.post("/v1/chat/completions", json={**alone, "stream": True}).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
            assert "data: [DONE]" in lines
        else:
            text = server.chat(**{**alone, "problem": problem}).json()["choices"][0]["message"]["content"]
        assert first_number(text.partition(":")[2]) == first_number(problem), (problem, text)

    with ThreadPoolExecutor(12) as pool:
        for future in [pool.submit(client, number) for number in range(30)]:
            future.result(PATIENCE)
    until(server.idle)
    told = server.http.get("/metrics").text
    assert re.search(r"^ppl_llm_hang_ups_total [6-9]", told, re.MULTILINE) and "ppl_llm_programs 0.0" in told


def test_a_client_that_hangs_up_frees_its_particles(server: Running) -> None:
    """Of a plain request and of a stream: the runs would take hours."""
    until(server.idle)
    with server.http.stream("POST", "/v1/chat/completions", json=body(model=ENDLESS, stream=True)) as stream:
        assert next(stream.iter_lines())
        assert server.gateway.dispatcher.active == 1
    until(server.idle)
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=body(model=ENDLESS), timeout=0.5)
    until(server.idle)
    assert server.gateway.dispatcher._runs == set() and not server.gateway.dispatcher._programs._jobs


def test_a_deadline_gives_what_there_is(server: Running) -> None:
    """A run that would take hours. How much it finds depends on the machine, so it is given more time until it has found something."""
    for deadline in (2, 8, 32, 100):
        found = server.chat(model=ENDLESS, seed=1, ppl={"deadline": deadline})
        if found.status_code == 200:
            break
        assert found.json()["error"]["code"] == "deadline_exceeded"
    reply = found.json()
    assert reply["ppl"]["stopped"] == "deadline" and reply["choices"][0]["message"]["content"].startswith("First")
    assert 0 < reply["ppl"]["iterations"] < 10_000
    streamed = server.chat(model=ENDLESS, seed=1, stream=True, ppl={"deadline": 2 * deadline})
    lines = streamed.text.splitlines()
    assert "data: [DONE]" in lines and sum(line.startswith(": ") for line in lines) > 1
    assert any('"stopped":"deadline"' in line for line in lines)


def test_progress_is_told_in_comments(server: Running) -> None:
    lines = server.chat(stream=True, model="demo:smc-4", ppl={"progress": True}).text.splitlines()
    told = [json.loads(line[2:]) for line in lines if line.startswith(": ")]
    assert [each["step"] for each in told] == list(range(1, len(told) + 1)) and told[-1]["finished"] == 4
    for each in told:
        assert len(each["parents"]) == len(each["weights"]) == len(each["steps"]) == 4 and sum(each["weights"]) == pytest.approx(1)
    silent = [json.loads(line[2:]) for line in server.chat(stream=True).text.splitlines() if line.startswith(": ")]
    assert "parents" not in silent[0]


def test_pages_of_runs(server: Running) -> None:
    script = "<script>document.title='taken over'</script>"
    reply = server.chat(f"{PROBLEM} {script}").json()
    page = server.http.get(reply["ppl"]["run"])
    assert page.status_code == 200 and script not in page.text and "taken over" in page.text
    assert "sandbox" in page.headers["content-security-policy"] and page.headers["x-content-type-options"] == "nosniff"
    assert server.http.get("/runs/nothing").status_code == 404


def test_the_rest_that_no_client_of_openai_can_say(server: Running) -> None:
    post = server.http.post
    for data, status in ((b"{", 400), (b"[" * 100_000, 400), (b'{"model": NaN}', 400), (b"[]", 400), (b"\xff", 400)):
        refused = post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
        assert refused.status_code == status and refused.json()["error"]["type"] == "invalid_request_error", data[:10]
    assert post("/v1/chat/completions", data={"a": "b"}).status_code == 415  # what a form of another site can send
    assert post("/v1/completions", json={"model": "demo", "prompt": [1, 2]}).json()["error"]["param"] == "prompt"
    assert post("/v1/completions", json={"model": "demo", "prompt": "x", "echo": True}).json()["error"]["param"] == "echo"
    assert server.http.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert server.http.get("/v1/chat/completions").status_code == 405

    def chunks() -> Iterator[bytes]:
        yield b'{"model": "demo", "messages": [{"role": "user", "content": "'
        for _ in range(64):
            yield b"x" * 65_536
        yield b'"}]}'

    longer = post("/v1/chat/completions", content=chunks(), headers={"Content-Type": "application/json"})
    assert longer.status_code == 413  # without a length beforehand
    assert server.http.get("/health").json()["status"] == "ok"


def test_no_text_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not even of one that fails with an exception that quotes it."""

    def quoting(problem: str, solution: str) -> float:
        raise LookupError(f"cannot judge {problem}")

    lm, _ = models()
    failing = Gateway(Served("failing", lm, FunctionReward(quoting)), limits=Limits(runs=0))
    with caplog.at_level(logging.INFO, "ppl_llm"), running(served=failing) as up:
        reply = up.chat(f"{PROBLEM} {SECRET}", model="failing:smc-4")
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "run_failed" and SECRET not in reply.text
        told = up.chat(f"{PROBLEM} {SECRET}", model="failing:self-consistency-2").json()
        assert told["choices"][0]["message"]["content"] and told["ppl"]["run"] is None
        up.http.get(f"/{SECRET}")
        up.chat(SECRET, model=SECRET)
    assert "LookupError at " in caplog.text and "POST /v1/chat/completions 500" in caplog.text and "GET other 404" in caplog.text
    assert SECRET not in caplog.text and PROBLEM[:20] not in caplog.text


class Process:
    """``ppl-llm serve`` in a process of its own."""

    def __init__(self, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "ppl_llm.cli", "serve", "--port", str(port), "--log-json", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PPL_LLM_SERVE_KEYS": ""})
        assert self.process.stderr is not None
        line = next((json.loads(line) for line in self.process.stderr if '"listening"' in line), None)
        assert line is not None and line["model"] == "demo", "it does not come up"
        self.url = line["address"]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def busy(self) -> bool:
        return bool(self.http.get("/health").json()["programs"] > 0)

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def test_sigterm_lets_requests_under_way_finish() -> None:
    with Process("--particles", "16") as served, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(served.http.post, "/v1/chat/completions", json=body(seed=seed, model="demo")) for seed in range(4)]
        until(served.busy)
        served.process.send_signal(signal.SIGTERM)
        replies = [each.result(PATIENCE) for each in waiting]
        assert served.end() == 0
        answered = [reply.json() for reply in replies if reply.status_code == 200]
        assert answered and all(reply["choices"][0]["message"]["content"].startswith("First") for reply in answered)
        assert all(reply.json()["error"]["code"] == "shutting_down" for reply in replies if reply.status_code != 200)
        with pytest.raises(httpx.ConnectError):
            served.http.get("/health")


def test_a_second_sigterm_ends_it_at_once() -> None:
    """Of a run that would take hours, with a grace period of minutes."""
    with Process("--grace", "600") as served, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.http.post, "/v1/chat/completions", json=body(model=ENDLESS))
        until(served.busy)
        served.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(served))
        assert served.process.stderr is not None
        note = json.loads(next(line for line in served.process.stderr if '"note"' in line))["message"]
        assert note.startswith("ending in at most 600 s; programs under way: 1;")
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0
        error = waiting.exception(PATIENCE)
        assert isinstance(error, httpx.TransportError) or waiting.result().status_code >= 500


def refuses(served: Process) -> bool:
    try:
        return served.http.get("/health").status_code == 503
    except httpx.TransportError:
        return True


def test_a_killed_server_can_be_started_again_and_its_grace_period_ends() -> None:
    with Process() as served, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(served.http.post, "/v1/chat/completions", json=body(model=ENDLESS))
        until(served.busy)
        served.process.kill()
        with pytest.raises(httpx.TransportError):
            lost.result(PATIENCE)
        served.end()
    with Process("--grace", "0.5", port=int(served.url.rpartition(":")[2])) as again, ThreadPoolExecutor(2) as pool:
        assert again.http.post("/v1/chat/completions", json=body()).status_code == 200
        plain = pool.submit(again.http.post, "/v1/chat/completions", json=body(model=ENDLESS))
        stream = pool.submit(again.http.post, "/v1/chat/completions", json=body(model=ENDLESS, stream=True))
        until(lambda: again.http.get("/health").json()["programs"] == 2)
        again.process.send_signal(signal.SIGTERM)
        assert plain.result(PATIENCE).status_code == 503
        assert "shutting_down" in stream.result(PATIENCE).text
        assert again.end() == 0
