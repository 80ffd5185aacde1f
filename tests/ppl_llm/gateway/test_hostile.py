"""What hostile clients send: values that no field expects, bodies and headers that do not end."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppl_llm import FunctionReward
from ppl_llm.gateway import Gateway, Keys, Served, app
from ppl_llm.gateway.errors import ApiError
from ppl_llm.methods import MODEL_OPTIONS, SOLVING
from tests.helpers.gateway import PATIENCE, PROBLEM, Running, gateway, models, running, until

VALUES = [
    *("null", "true", "0", "-1", "0.5", "1e999", "-1e999", "1e-320", "1" + "0" * 400, "-" + "9" * 4000, '""', '"x"', '"\\u0000"'),
    *('"\\ud800"', '["a", "\\udfff"]', '{"\\ud800": 1}', "[]", "[null]", "[[]]", "[{}]", "{}", '{"a": 1}', "[1, 2]"),
    *('"' + "y" * 5000 + '"', '{"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}', '{"type": "\\udc00"}'),
]
FIELDS = [
    *("model", "messages", "ppl", "temperature", "top_p", "n", "seed", "stop", "max_tokens", "max_completion_tokens", "stream"),
    *("stream_options", "response_format", "user", "metadata", "logprobs", "tools", "logit_bias", "best_of", "made_up", "\\ud800"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(concurrent=8, queue=60, tokens=8, steps=2, deadline=60.0, body_bytes=50_000) as up:
        yield up


def post(server: Running, body: str, path: str = "/v1/chat/completions") -> Any:
    return server.http.post(path, content=body.encode(), headers={"Content-Type": "application/json"})


def body(**fields: str) -> str:
    small = {"model": '"demo:smc-2"', "messages": json.dumps([{"role": "user", "content": PROBLEM}]), "max_tokens": "2", **fields}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in small.items()) + "}"


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_any_field_breaks_the_server(server: Running, field: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for value in VALUES:
            reply = post(server, body(**{field: value}))
            assert reply.status_code < 500, (field, value[:50], reply.text)
            assert reply.status_code == 200 or reply.json()["error"]["message"], (field, value[:50])
    assert caplog.text == ""


def test_no_value_in_a_message_breaks_the_server(server: Running) -> None:
    for value in VALUES:
        for message in (f'{{"role": "user", "content": {value}}}', f'{{"role": {value}, "content": "x"}}', value):
            assert post(server, body(messages=f"[{message}]")).status_code < 500, value[:50]
        assert post(server, f'{{"model": "demo:smc-2", "max_tokens": 2, "prompt": {value}}}', "/v1/completions").status_code < 500


def test_half_a_character_is_refused_wherever_it_is(server: Running) -> None:
    """JSON can write it, and no text can hold it; a whole one in two halves is fine."""
    for fields in (
        {"stop": '"a\\ud83d"'},
        {"\\ud800": "1"},
        {"model": '"\\udfff"'},
        {"user": '"\\ud800"'},
        {"metadata": '{"a": ["\\ud800"]}'},
    ):
        refused = post(server, body(**fields))
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_json", fields
    assert post(server, body(stop='"\\ud83d\\ude00"')).status_code == 200


def test_every_option_refuses_every_value_by_its_name() -> None:
    served = gateway()
    values = [json.loads(value) for value in VALUES]
    try:
        for name, method in SOLVING.items():
            for option in (*method.options, *MODEL_OPTIONS.values()):
                for value in values:
                    ppl = {"method": name, option.name: value}
                    try:
                        served.read({"model": "demo", "messages": [{"role": "user", "content": "x"}], "ppl": ppl}, chat=True)
                    except ApiError as error:
                        assert error.param is not None and error.status == 400, (name, option.name, value)
    finally:
        served.dispatcher.close()


@pytest.mark.parametrize("field", ["temperature", "top_p"])
def test_what_is_next_to_nothing_is_nothing(server: Running, field: str) -> None:
    """Divided by it, logits leave the range of float32."""
    greedy = post(server, body(**{field: "0", "seed": "1"})).json()["choices"]
    for value in ("1e-320", "1e-45", "1e-30", "1e-7"):
        assert post(server, body(**{field: value, "seed": "2"})).json()["choices"][0]["message"] == greedy[0]["message"]


def raw(server: Running, data: bytes) -> tuple[socket.socket, bytes]:
    """A connection after some bytes, and what came back within a moment."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(data)
    connection.settimeout(0.3)
    try:
        return connection, connection.recv(65_536)
    except (TimeoutError, ConnectionResetError):
        return connection, b""


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_bodies_and_headers_that_do_not_end_hold_up_nobody(server: Running) -> None:
    slow = [raw(server, HEAD + b"Content-Length: 1000\r\n\r\n{")[0] for _ in range(20)]
    slow += [raw(server, HEAD + b"X-More: ")[0] for _ in range(20)]
    assert post(server, body()).status_code == 200 and server.gateway.dispatcher.active == 0
    for connection in slow:
        connection.close()
    until(server.idle)


def test_a_body_that_does_not_end_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_BODY_SECONDS", 0.1)
    connection, found = raw(server, HEAD + b"Content-Length: 1000\r\n\r\n{")
    connection.settimeout(PATIENCE)
    with connection, connection.makefile("rb") as reply:
        found += reply.read()  # to the end: the connection is closed
    assert b" 408 " in found and b'"code":"body_timeout"' in found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n", b"4"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"4"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFF\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"GET /runs/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /runs/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /runs/%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /v1/models/%ff%00..%2f HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n", b"403"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
    ],
)
def test_what_is_no_request_is_refused(server: Running, data: bytes, status: bytes) -> None:
    connection, found = raw(server, data)
    connection.close()
    assert found.split(b" ")[1].startswith(status) if found else status == b"", found[:200]
    assert b"root:" not in found and server.http.get("/health").status_code == 200


def test_a_reward_that_fails_in_one_request_leaves_the_others_alone() -> None:
    lm, _ = models()

    def sometimes(problem: str, solution: str) -> float:
        if "fail" in problem:
            raise ZeroDivisionError("of one request")
        return 0.5

    with running(served=Gateway(Served("some", lm, FunctionReward(sometimes)))) as up, ThreadPoolExecutor(6) as pool:
        texts = [f"{PROBLEM} {'fail' if number % 3 == 0 else number}" for number in range(6)]
        replies = list(pool.map(lambda text: up.chat(text, model="some:smc-3", seed=1, max_tokens=400), texts))
        assert [reply.status_code for reply in replies] == [500, 200, 200, 500, 200, 200]
        alone = up.chat(texts[1], model="some:smc-3", seed=1, max_tokens=400).json()["choices"][0]["message"]
        assert replies[1].json()["choices"][0]["message"] == alone
        until(up.idle)


def test_deep_json_is_refused(server: Running) -> None:
    for data in ("[" * 20_000 + "]" * 20_000, '{"a":' * 7_000 + "1" + "}" * 7_000, body(metadata="[" * 900 + '"\\u0041"' + "]" * 900)):
        assert post(server, data).status_code in (200, 400)


def test_keys_take_as_long_whatever_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is hashed and compared with all that are known: no timing, but the comparisons are counted."""
    import hmac

    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: Any, other: Any) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys = Keys(["first-key", "second-key", "third-key"])
    for given in ("Bearer first-key", "Bearer third-key", "Bearer wrong", "Bearer " + "x" * 10_000, "", None, "Basic first-key"):
        compared.clear()
        keys.accept(given)
        assert compared == [(32, 32)] * 3, given


def test_the_clock_of_a_full_queue_is_told() -> None:
    """429 says when to come again, and a client that does is answered."""
    with running(concurrent=1, queue=0) as up, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda seed: up.chat(model="demo:smc-8", seed=seed), range(4)))
        refused = [reply for reply in replies if reply.status_code == 429]
        assert refused and all(1 <= int(reply.headers["Retry-After"]) <= 60 for reply in refused)
        until(up.idle)
        assert up.chat(model="demo:smc-2").status_code == 200
