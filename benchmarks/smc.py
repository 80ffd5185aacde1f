"""The whole loop of a particle filter: ``ppl_llm`` against transformers alone, with and without dropping sequences.

Steps are ragged (random lengths, geometric with a cap), and multinomial resampling follows each of them; tokens per second count useful
tokens only. See ``stock_loops.py`` for the others' loops.

``python benchmarks/smc.py``, with ``--quick`` for a small case. Process CPU time on one thread, in turns; ``--threads 1 all`` for time on
the clock, with one thread and with all, in one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from common import (
    Spread,
    add_threads,
    arms,
    clock,
    in_arms,
    in_turns,
    make_model,
    make_tokenizer,
    ratios,
    record,
    root,
    single_thread,
    table,
    words,
)
from stock_loops import continuous_batching, generate_and_realign, generate_from_scratch

from ppl_llm import SMC, Context, LLMStep, barrier
from ppl_llm.lm.decoding import step_sampler
from ppl_llm.lm.transformers_lm import TransformersLM

STOPS = 80
"""Of 8192 tokens: a step ends with about one token in a hundred."""
WIDTHS = {64: 64, 16: 32}
"""Most tokens of a step, by sequences."""
DROPPING_STEPS = {64: 3, 256: 1}
"""Steps in which finished sequences are dropped or not, by sequences."""
STOPS_OF_29 = 282
"""Steps of 29 tokens in the mean."""


def smc_loop(lm: TransformersLM, prompt: list[int], sequences: int, steps: int, width: int) -> int:
    """The filter as a user runs it: a Pyro program under ``SMC``; from an empty cache."""
    lm.release_caches()

    def program() -> Context:
        context = root(lm, prompt)
        for t in range(steps):
            context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, max_tokens=width)))
            context = barrier(context)
        return context

    return int(SMC(program, sequences, resampler="multinomial", ess_threshold=1.0).run().cost["tokens_sampled"])


WAYS: dict[str, tuple[str, Callable[..., int]]] = {
    "realign": ("generate, cache kept and realigned", generate_and_realign),
    "from scratch": ("generate on whole texts", generate_from_scratch),
    "batching": ("continuous batching", continuous_batching),
}


def whole_loop(ways: list[str], sequences: int, length: int, steps: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """``SMC`` and transformers' ways, each row with how many times faster ``SMC`` is."""
    prompt, lm = words(length), TransformersLM(make_model(), make_tokenizer(STOPS))
    lm.stop_automaton("\n\n")

    def runs(steps: int) -> dict[str, Callable[[], int]]:
        size = prompt, sequences, steps, width
        return {"ppl_llm.SMC": lambda: smc_loop(lm, *size)} | {
            WAYS[way][0]: lambda way=way: WAYS[way][1](stock[way], *size, STOPS) for way in ways
        }

    stock = {way: make_model() for way in ways}
    for model in stock.values():
        model.set_attn_implementation("sdpa")
    torch.manual_seed(0)
    in_turns(runs(steps=1), 1, warm_up=0)  # a shorter run warms up as well
    return _rows(f"{sequences} sequences, prompt {length}, {steps} steps of at most {width}", in_turns(runs(steps), repeats, warm_up=0))


@contextmanager
def no_dropping() -> Iterator[None]:
    """Sequences that have finished their step stay in the batch until all have."""
    kept = step_sampler._KEEP_OCCUPANCY
    step_sampler._KEEP_OCCUPANCY = 0.0
    try:
        yield
    finally:
        step_sampler._KEEP_OCCUPANCY = kept


def dropping(sequences: int, length: int, steps: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """Exponential step lengths, finished sequences dropped or not."""
    prompt, lm = words(length, stops=STOPS_OF_29), TransformersLM(make_model(), make_tokenizer(STOPS_OF_29))
    lm.stop_automaton("\n\n")

    def loop(seed: int) -> int:
        torch.manual_seed(seed)
        return smc_loop(lm, prompt, sequences, steps, width)

    def undropped(seed: int) -> int:
        with no_dropping():
            return loop(seed)

    seeds = {"finished sequences dropped": iter(range(repeats + 1)), "kept to the end of the step": iter(range(repeats + 1))}
    runs = {name: (lambda run=run, name=name: run(next(seeds[name]))) for name, run in zip(seeds, (loop, undropped), strict=True)}
    return _rows(f"{sequences} sequences, prompt {length}, {steps} steps of 29 in the mean, at most {width}", in_turns(runs, repeats))


def _rows(what: str, measured: dict[str, list[tuple[float, int]]]) -> list[dict[str, Any]]:
    """Each way with its rate and how many times faster the first way is."""
    per_token = {name: [seconds / tokens for seconds, tokens in each] for name, each in measured.items()}
    ours = next(iter(per_token.values()))
    return [
        {
            "loop": what,
            "way": name,
            "tokens": Spread.of([tokens for _, tokens in measured[name]]).median,
            "tokens/s": Spread.of([1 / each for each in times]),
            "first is faster by": ratios(times, ours),
        }
        for name, times in per_token.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 sequences, prompt 32, 2 steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sequences", type=int, nargs="*", choices=list(WIDTHS), default=list(WIDTHS), help="whole loops to compare")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS), help="what to compare them with")
    choices = list(DROPPING_STEPS)
    parser.add_argument(
        "--dropping", type=int, nargs="*", choices=choices, default=choices, help="sequences that are dropped or kept when finished"
    )
    add_threads(parser)
    arguments = parser.parse_args()
    single_thread()
    repeats, measured = arguments.repeats, arms(arguments.threads)
    if arguments.quick:
        loops: list[Callable[[], list[dict[str, Any]]]] = [
            lambda: whole_loop(arguments.ways, 4, 32, 2, 8, repeats),
            lambda: dropping(4, 32, 1, 141, repeats),
        ]
    else:
        loops = [lambda n=n: whole_loop(arguments.ways, n, 256, 5, WIDTHS[n], repeats) for n in arguments.sequences]
        loops += [lambda n=n: dropping(n, 256, DROPPING_STEPS[n], 141, repeats) for n in arguments.dropping]
    # Loop by loop, so that what else the machine does meets all numbers of threads alike.
    rows = [row for loop in loops for row in in_arms(measured, loop)]
    print(f"{repeats} turns: median (least-most) of {clock(measured)}\n")
    print(table(rows))
    record("smc", rows, vars(arguments))


if __name__ == "__main__":
    main()
