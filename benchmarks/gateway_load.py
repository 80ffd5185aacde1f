"""Load on ``ppl-llm serve`` with the demo models: many clients at once, some of whom hang up or send nonsense.

Every other request must be answered, and the memory of the server must not grow. The same requests are sent one after the other as well:
each has a seed, so that every answer must be the one that it has alone. The server runs in a process of its own, whose processor time is
what a machine with other work to do can tell; clients are not part of it.

    python benchmarks/gateway_load.py
    python benchmarks/gateway_load.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from statistics import quantiles
from typing import Any

import httpx
import psutil
from common import record

from ppl_llm.demo import held_out

METHODS = ("demo:smc-4", "demo:best-of-n-4", "demo:self-consistency-4", "demo:smc-2", "demo:importance-4")
HANGING_UP, MALFORMED, STREAMED = 0.10, 0.05, 0.30
PATIENCE = 600.0


@dataclass(frozen=True)
class Request:
    """One request of a client.

    :ivar str kind: ``plain``, ``streamed``, ``hanging up`` or ``malformed``.
    """

    kind: str
    body: dict[str, Any]


@dataclass
class Seen:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)


def requests(count: int, seed: int) -> list[Request]:
    """A mixture that depends on the seed only: shares are exact."""
    draw = random.Random(seed)
    kinds = ["hanging up"] * round(HANGING_UP * count) + ["malformed"] * round(MALFORMED * count) + ["streamed"] * round(STREAMED * count)
    kinds += ["plain"] * (count - len(kinds))
    draw.shuffle(kinds)
    made = []
    for number, (kind, problem) in enumerate(zip(kinds, held_out(count, seed), strict=True)):
        method = METHODS[number % len(METHODS)]
        body = {"model": method, "messages": [{"role": "user", "content": problem.text}], "seed": number, "temperature": 0.7}
        body["stream"] = kind in ("streamed", "hanging up")
        if kind == "malformed":
            body |= draw.choice([{"temperature": "hot"}, {"model": "nothing"}, {"messages": []}, {"n": 0}, {"made_up": 1}])
        made.append(Request(kind, body))
    return made


def one(http: httpx.Client, number: int, request: Request, seen: Seen) -> None:
    """Send a request, wait for its answer and look whether it is one."""
    began = time.perf_counter()
    if request.kind == "hanging up":
        with http.stream("POST", "/v1/chat/completions", json=request.body) as stream:
            next(stream.iter_bytes(), None)
        seen.kinds["hung up"] += 1
        return
    reply = http.post("/v1/chat/completions", json=request.body)
    if request.kind == "malformed":
        fine = reply.status_code in (400, 404) and "message" in reply.json()["error"]
        seen.kinds["refused"] += fine
        if not fine:
            seen.wrong.append(f"request {number}: nonsense was answered with {reply.status_code}")
        return
    if reply.status_code != 200:
        seen.wrong.append(f"request {number}: {reply.status_code} {reply.text[:200]}")
        return
    text = streamed(reply.text) if request.kind == "streamed" else reply.json()["choices"][0]["message"]["content"]
    seen.seconds.append(time.perf_counter() - began)
    seen.kinds["answered"] += 1
    seen.answers[number] = text


def streamed(text: str) -> str:
    """The message of a stream that came to its end."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    if lines[-1] != "data: [DONE]":
        return ""
    return "".join(choice["delta"].get("content", "") for line in lines[:-1] for choice in json.loads(line[6:])["choices"])


def send(url: str, made: Sequence[Request], clients: int) -> tuple[float, Seen]:
    """All requests, from so many clients at once: seconds, and what they saw."""
    queue: SimpleQueue[int] = SimpleQueue()
    for number in range(len(made)):
        queue.put(number)
    seen = Seen()

    def client() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            while True:
                try:
                    number = queue.get_nowait()
                except Empty:
                    return
                try:
                    one(http, number, made[number], seen)
                except Exception as error:
                    seen.wrong.append(f"request {number}: {type(error).__name__} {error}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, seen


class Server:
    """``ppl-llm serve`` on a free port."""

    def __init__(self, clients: int, command: Sequence[str] = (sys.executable, "-m", "ppl_llm.cli")) -> None:
        options = ["--port", "0", "--log-json", "--queue", str(2 * clients), "--concurrent", str(clients), "--runs", "16"]
        self.process = subprocess.Popen([*command, "serve", *options], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self.process.stderr is not None
        told = next(json.loads(line) for line in self.process.stderr if '"listening"' in line)
        self.url = told["address"]
        threading.Thread(target=lambda: [None for _ in self.process.stderr or ()], daemon=True).start()

    def memory(self) -> float:
        """MB that are resident."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def cpu(self) -> float:
        """Seconds of work so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def idle(self) -> bool:
        return bool(httpx.get(f"{self.url}/health").json()["programs"] == 0)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def settled(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("programs of clients that hung up are still under way after a minute")
        time.sleep(0.02)


def figures(name: str, seconds: float, work: float, seen: Seen) -> dict[str, Any]:
    cuts = quantiles(seen.seconds, n=20) if len(seen.seconds) > 1 else [0.0] * 19
    return {
        "run": name,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
        "requests_per_second": round(sum(seen.kinds.values()) / seconds, 2),
        "p50": round(cuts[9], 3),
        "p95": round(cuts[18], 3),
        **seen.kinds,
        "wrong": len(seen.wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="times that the load is repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="60 requests of 8 clients, once, and nothing recorded")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.requests, chosen.clients, chosen.repeats = 60, 8, 1
    made = requests(chosen.requests, chosen.seed)
    server = Server(chosen.clients)
    rows: list[dict[str, Any]] = []
    found: dict[int, list[tuple[dict[str, Any], Seen]]] = {chosen.clients: [], 1: []}
    try:
        send(server.url, made[:20], 4)  # caches, and what is imported on first use
        memory = [server.memory()]
        for number in range(chosen.repeats):  # turn by turn, as what else the machine does changes
            for clients, name in ((chosen.clients, f"{chosen.clients} clients"), (1, "one after the other")):
                before = server.cpu()
                seconds, seen = send(server.url, made, clients)
                settled(server.idle)
                row = figures(f"{name}, repeat {number + 1}", seconds, server.cpu() - before, seen)
                print(json.dumps(row), *seen.wrong[:5], sep="\n", flush=True)
                found[clients].append((row, seen))
                rows.append(row)
            memory.append(server.memory())
        alone = found[1][0][1].answers
        answers = [seen.answers for runs in found.values() for _, seen in runs if seen.answers is not alone]
        same = sum(text == alone[number] for each in answers for number, text in each.items() if number in alone)
        pairs = [(one, many) for (many, _), (one, _) in zip(*found.values(), strict=True)]
        rows.append(
            {
                "run": "together against one after the other",
                "throughput": [round(one["seconds"] / many["seconds"], 2) for one, many in pairs],
                "cpu": [round(one["cpu_seconds"] / many["cpu_seconds"], 2) for one, many in pairs],
                "same_texts": f"{same} of {sum(map(len, answers))}",
                "memory_mb": [round(each) for each in memory],
            }
        )
        print(json.dumps(rows[-1]))
    finally:
        server.close()
    if not chosen.quick:
        record("gateway_load", rows, {name: getattr(chosen, name) for name in ("requests", "clients", "repeats", "seed")})


if __name__ == "__main__":
    main()
