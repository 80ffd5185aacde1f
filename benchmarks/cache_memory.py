"""Memory of the KV cache of a language model, against the tokens that it has to hold, and what a token costs.

A particle filter's loop with resampling before every step but the first: 256 sequences with a prompt of 4096 tokens and a few steps, and 64
sequences with ten resamplings. Steps are ragged: of at most 32 tokens, 28 in the mean. Bytes are those of all tensors of the KV cache where
a step ends, against the *unique* tokens: the distinct prefixes of all sequences, each of which needs one key and one value in each layer.

``python benchmarks/cache_memory.py``, ``--against DIR`` compares with another checkout of this repository in the same run, ``--quick`` for
a small case. A fresh interpreter for each run, on one thread, in turns; seconds are process CPU time from the empty cache to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Spread, make_model, make_tokenizer, ratios, record, root, single_thread, table, timed, words

from ppl_llm.context import Context
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM

ROOT = Path(__file__).parents[1]
TOKENS = 32


class Case(NamedTuple):
    sequences: int
    prompt: int
    steps: int


CASES = [Case(256, 4096, 3), Case(64, 256, 11)]
QUICK = [Case(16, 100, 4)]


def run(case: Case) -> dict[str, float]:
    """One run of the loop in this process."""
    single_thread()
    lm = TransformersLM(make_model(max_position_embeddings=8192), make_tokenizer())
    lm.stop_automaton("\n\n")
    config, options = lm.model.config, StepOptions(max_tokens=TOKENS)
    token_bytes = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    before = peak_memory()
    torch.manual_seed(0)
    context, shape = root(lm, words(case.prompt)), torch.Size((case.sequences,))
    ratio, seconds, passes, last = [], 0.0, 0, 0.0
    for step in range(case.steps):
        if step:
            context = context.reorder(torch.randint(0, case.sequences, shape))
        last, sample = timed(partial(lm.sample_step, context, shape, options))
        seconds += last
        passes = int((sample.tokens >= 0).any(0).sum())
        context = context.extend(sample.tokens)
        unique = unique_tokens(context)
        held = sum(cache_bytes(cache) for cache in lm._engine.pool.caches)
        ratio.append(held / (unique * token_bytes))
    return {
        "unique": unique,
        "MiB": held / 2**20,
        "ratio": ratio[-1],
        "largest ratio": max(ratio),
        "peak MiB": (peak_memory() - before) / 2**20,
        "seconds": seconds,
        "ms": 1e3 * last / passes,
    }


def unique_tokens(context: Context) -> int:
    """Distinct prefixes of all sequences, without the last token of each, which has no keys yet."""
    nodes: dict[tuple[int, int], int] = {}
    for row, length in zip(context.tokens.tolist(), context.lengths.tolist(), strict=True):
        node = 0
        for token in row[: length - 1]:
            node = nodes.setdefault((node, token), len(nodes) + 1)
    return len(nodes)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors of a KV cache."""
    owners = [cache, *cache.hf_cache.layers]
    tensors = [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.Tensor)]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(case: Case, checkout: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--run", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", type=int, nargs=3, metavar=("SEQUENCES", "PROMPT", "STEPS"), help="one run in this process, as JSON")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(Case(*options.run))))
        return
    checkouts = {"here": ROOT} | ({"there": options.against.resolve()} if options.against else {})
    rows: list[dict[str, Any]] = []
    for case in QUICK if options.quick else CASES:
        found: dict[str, list[dict[str, float]]] = {where: [] for where in checkouts}
        for _ in range(1 if options.quick else options.repeats):
            for where, checkout in checkouts.items():
                found[where].append(in_fresh_process(case, checkout))
        for where, runs in found.items():
            rows.append(
                {
                    "": where,
                    **case._asdict(),
                    "unique tokens": int(runs[0]["unique"]),
                    "MiB of the KV cache": runs[0]["MiB"],
                    "over unique tokens": runs[0]["ratio"],
                    "most after any step": runs[0]["largest ratio"],
                    "peak RSS, MiB more": Spread.of([each["peak MiB"] for each in runs]),
                    "seconds": Spread.of([each["seconds"] for each in runs]),
                    "ms a token, last step": Spread.of([each["ms"] for each in runs]),
                    "seconds / there": ratios(*([each["seconds"] for each in found[w]] for w in (where, "there")))
                    if options.against
                    else "",
                }
            )
    print(table(rows))
    record("cache_memory", rows, {name: str(value) for name, value in vars(options).items()})


if __name__ == "__main__":
    main()
