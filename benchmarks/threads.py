"""Tokens per second on the clock against threads and how long they spin, on a quiet machine and beside other work.

Each way is a process of its own, since OpenMP reads its settings once; the processes of a turn follow one another, so that what else the
machine does meets all of them. A process samples steps of ``--tokens`` tokens for ``--sequences`` sequences from a random Qwen2 of a given
size and reports its best and its median step.

``python benchmarks/threads.py --busy 0 4``, with ``--quick`` for the small model only. The smallest size at which two threads beat one is
``ppl_llm.threads.ENOUGH_FOR_ONE``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "0.9 M (as the demo model)": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512, "vocab_size": 512},
    "6 M": {},
    "20 M": {"hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1536, "num_attention_heads": 6},
    "50 M": {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2048, "num_attention_heads": 8},
    "135 M (as SmolLM2)": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
_CORES = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
WAYS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads, default": {"OMP_NUM_THREADS": _CORES},
    "all, GOMP_SPINCOUNT=200000": {"OMP_NUM_THREADS": _CORES, "GOMP_SPINCOUNT": "200000"},
    "all, GOMP_SPINCOUNT=20000": {"OMP_NUM_THREADS": _CORES, "GOMP_SPINCOUNT": "20000"},
    "all, GOMP_SPINCOUNT=1000": {"OMP_NUM_THREADS": _CORES, "GOMP_SPINCOUNT": "1000"},
    "all, passive": {"OMP_NUM_THREADS": _CORES, "OMP_WAIT_POLICY": "passive"},
}
_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_")


def work(size: str, sequences: int, tokens: int, seconds: float) -> None:
    """What a process measures: seconds of its steps, as a line of JSON."""
    import torch
    from common import make_model, make_tokenizer, root, words

    from ppl_llm.lm.base import StepOptions
    from ppl_llm.lm.transformers_lm import TransformersLM

    changes = SIZES[size]
    lm = TransformersLM(make_model(**changes), make_tokenizer(16, changes.get("vocab_size", 8192)))
    lm.eos_ids = lm.eos_ids[:0]
    options = StepOptions(("a text that no token ends",), tokens, 1.0)
    context = root(lm, words(60, stops=16, vocab=changes.get("vocab_size", 8192)))
    took: list[float] = []
    torch.manual_seed(0)
    began = time.perf_counter()
    while len(took) < 4 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        lm.sample_step(context, torch.Size((sequences,)), options)
        took.append(time.perf_counter() - start)
    print(json.dumps(took[1:]))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that do nothing but work."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def speed(size: str, way: str, arguments: argparse.Namespace) -> float:
    """Tokens per second of the median step of one process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)} | WAYS[way]
    options = [
        "--work",
        size,
        "--sequences",
        str(arguments.sequences),
        "--tokens",
        str(arguments.tokens),
        "--seconds",
        str(arguments.seconds),
    ]
    done = subprocess.run([sys.executable, __file__, *options], env=environment, capture_output=True, text=True, check=True)
    took = sorted(json.loads(done.stdout.splitlines()[-1]))
    return arguments.sequences * arguments.tokens / took[len(took) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--busy", type=int, nargs="+", default=[0], help="processes beside it that only work")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:], help="beside one thread")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16, help="of each step")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.sequences, arguments.tokens, arguments.seconds)
        return
    from common import Spread, record, table

    if arguments.quick:
        arguments.sizes, arguments.repeats, arguments.seconds = arguments.sizes[:1], 1, 1.0
    rows: list[dict[str, Any]] = []
    ways = list(WAYS)[:1] + arguments.ways
    for busy in arguments.busy:
        for size in arguments.sizes:
            with load(busy):
                turns = [{way: speed(size, way, arguments) for way in ways} for _ in range(arguments.repeats)]
            for way in ways:
                against = [turn[way] / turn["one thread"] for turn in turns]
                found = Spread.of([turn[way] for turn in turns])
                rows.append({"model": size, "beside": busy, "way": way, "tokens/s": found, "against one thread": Spread.of(against)})
    print(table(rows))
    record("threads", rows, vars(arguments))


if __name__ == "__main__":
    main()
