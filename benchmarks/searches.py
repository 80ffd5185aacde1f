"""Tree searches against a particle filter: CPU time, the share of it outside of forward passes, and memory.

A search of N simulations and a filter of N particles on the same model and problem: a random language model, steps of a fixed number of
tokens, and scores that follow from the tokens, so that all forward passes are the language model's. With ``value="rollout"`` a simulation
writes a whole completion as a particle does, with ``value="prefix"`` one step.

Outside of forward passes is all that is not the network. Of it, ``draws`` are the tokens' distributions and the tokens drawn from them, the
same work for each token whatever the algorithm; ``bookkeeping`` is what the filter does not have, choosing prefixes, backing up values, and
putting known values together. The rest is the sweep over the model's sites and the look-up of KV caches. ``more than the filter`` is the
share outside of passes less that of the filter in the same turn. Memory is that of the KV caches and, of a search, its tables.

``python benchmarks/searches.py``, with ``--quick`` for a small case. Process CPU time on one thread, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pyro
import torch
from common import Spread, in_turns, make_model, make_tokenizer, ratios, record, single_thread, table, words
from torch import Tensor

from ppl_llm import ABMCTS, MCTS, SMC, Context, TransformersLM, reasoning
from ppl_llm.inference.search.prefix_tree import PrefixTree
from ppl_llm.kv_cache.engine import CacheEngine
from ppl_llm.lm.decoding import sampling

BOOKKEEPING = {
    MCTS: ("begin", "select", "backup", "visits"),
    ABMCTS: ("begin", "select", "backup", "visits"),
    PrefixTree: ("known", "_add", "_ancestors"),
}
"""What a search does besides running the model."""


class Hashed:
    """A reward without a network: the log-odds of a step follow from its tokens."""

    def step_log_odds(self, context: Context) -> Tensor:
        starts = context.step_starts
        column = torch.arange(context.tokens.shape[-1])
        inside = (column >= starts[..., None]) & (column < context.ends[..., None])
        return ((context.tokens[..., None, :] * inside).sum(-1) % 97).float() / 24.0 - 1.0


@contextmanager
def watched(seconds: dict[str, float], owner: Any, name: str, label: str) -> Iterator[None]:
    """Add the CPU time of calls of a function of a class or module to ``seconds[label]``, calls within such calls once."""
    inner, busy = getattr(owner, name), [False]

    def timed(*args: Any, **kwargs: Any) -> Any:
        if busy[0]:
            return inner(*args, **kwargs)
        busy[0], began = True, time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            busy[0] = False
            seconds[label] += time.process_time() - began

    with mock.patch.object(owner, name, timed):
        yield


def measured(lm: TransformersLM, algorithm: Any, problem: str) -> Callable[[], dict[str, float]]:
    """A run from an empty cache; gives seconds of its parts, tokens, and bytes."""

    def run() -> dict[str, float]:
        lm.release_caches()
        seconds = {"passes": 0.0, "draws": 0.0, "bookkeeping": 0.0}
        tables: list[int] = []
        with ExitStack() as stack:
            stack.enter_context(watched(seconds, CacheEngine, "_pass", "passes"))
            stack.enter_context(watched(seconds, sampling, "draw", "draws"))
            for kind, names in BOOKKEEPING.items():
                for name in names:
                    stack.enter_context(watched(seconds, kind, name, "bookkeeping"))
            inner = PrefixTree.known

            def known(tree: PrefixTree, *args: Any, **kwargs: Any) -> Any:
                held = [*tree._values.values(), tree.parent, tree.depth, tree.log_v, tree.done, tree.solution, tree.extent]
                tables.append(sum(tensor.numel() * tensor.element_size() for tensor in held))
                return inner(tree, *args, **kwargs)

            stack.enter_context(mock.patch.object(PrefixTree, "known", known))
            pyro.set_rng_seed(0)
            began = time.process_time()
            posterior = algorithm.run(problem)
            total = time.process_time() - began
        pool = lm._engine.pool
        return {
            **seconds,
            "total": total,
            "tokens": posterior.cost["tokens_sampled"],
            "forwards": posterior.cost["lm_forwards"],
            "prefilled": posterior.cost["tokens_prefilled"],
            "cache": sum(cache.num_bytes for cache in pool.caches),
            "tables": max(tables, default=0),
        }

    return run


def compare(number: int, batch: int, prompt: int, steps: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the filter and of the searches."""
    lm = TransformersLM(make_model(), make_tokenizer())
    model = reasoning(lm, Hashed(), "twisted", max_steps=steps, tokens_per_step=tokens)
    problem = lm.decode(words(prompt))
    ways = {f"SMC({number})": SMC(model, number)}
    for value in ("rollout", "prefix"):
        ways[f"MCTS({number}, {batch}), {value}"] = MCTS(model, number, batch, value=value)
        ways[f"ABMCTS({number}, {batch}), {value}"] = ABMCTS(model, number, batch, value=value)
    runs = in_turns({name: measured(lm, way, problem) for name, way in ways.items()}, repeats)
    rows = []
    of_filter = [(p["total"] - p["passes"]) / p["total"] for _, p in next(iter(runs.values()))]
    for name, found in runs.items():
        parts = [result for _, result in found]
        outside = [(p["total"] - p["passes"]) / p["total"] for p in parts]
        rows.append(
            {
                "way": name,
                "s": Spread.of([p["total"] for p in parts]),
                "ms a token": Spread.of([1e3 * p["total"] / p["tokens"] for p in parts]),
                "tokens a pass": parts[0]["tokens"] / parts[0]["forwards"],
                "prefilled": parts[0]["prefilled"],
                "outside of passes": Spread.of(outside),
                "draws": ratios([p["draws"] for p in parts], [p["total"] for p in parts]),
                "more than the filter": Spread.of([own - filter_ for own, filter_ in zip(outside, of_filter, strict=True)]),
                "bookkeeping": ratios([p["bookkeeping"] for p in parts], [p["total"] for p in parts]),
                "MiB of caches": parts[0]["cache"] / 2**20,
                "MiB of tables": parts[0]["tables"] / 2**20,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 simulations of 3 steps of 4 tokens")
    parser.add_argument("--simulations", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    single_thread()
    size = (16, 4, 32, 3, 4) if arguments.quick else (arguments.simulations, arguments.batch, 128, 4, 12)
    rows = compare(*size, arguments.repeats)
    print(f"{arguments.repeats} turns: median (least-most) of process CPU time\n")
    print(table(rows))
    record("searches", rows, vars(arguments))


if __name__ == "__main__":
    main()
