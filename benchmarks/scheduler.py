"""Many particle filters on one language model: one after the other, as a plate of problems in lockstep, and with ``run_concurrently``.

Step lengths are exponential with mean 29, cut off at 141. Every filter resamples after each step and waits for its slowest sequence; in
lockstep all filters wait for the slowest sequence of all. The occupancy is the useful share of a batch over all passes that sample.

``python benchmarks/scheduler.py``, with ``--quick`` for a small case, with ``--device-loop`` by the loop for accelerators, whose batch is a
KV cache of its own that sequences are copied to and from. Process CPU time on one thread, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from common import Spread, in_turns, make_model, make_tokenizer, ratios, record, root, single_thread, table, words

from ppl_llm import SMC, Context, LLMStep, barrier
from ppl_llm.inference import run_concurrently
from ppl_llm.lm.transformers_lm import TransformersLM

STOPS = 282
"""Of 8192 tokens: a step ends with about one token in 29."""
LONGEST = 141


class Passes:
    """Counts the passes that sample."""

    def __init__(self, model: Any) -> None:
        self.number = 0
        model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: Any, args: Any, kwargs: Any) -> None:
        self.number += kwargs["input_ids"].shape[1] == 1


def program(lm: TransformersLM, prompts: list[list[int]], steps: int) -> Callable[[], Context]:
    """One problem, or a plate of them."""

    def run() -> Context:
        context = root(lm, *prompts)
        for t in range(steps):
            with pyro.plate("problems", len(prompts), dim=-1) if len(prompts) > 1 else nullcontext():
                context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, max_tokens=LONGEST)))
            context = barrier(context)
        return context

    return run


def compare(
    problems: int, particles: int, steps: int, length: int, max_sequences: int, repeats: int, device_loop: bool
) -> list[dict[str, Any]]:
    """Rows of all ways; the same programs each time."""
    lm = TransformersLM(make_model(), make_tokenizer(STOPS), device_loop=device_loop)
    lm.stop_automaton("\n\n")
    passes = Passes(lm.model)
    prompts = [words(length + 4 * p, seed=p, stops=STOPS) for p in range(problems)]

    def sweep(some: list[list[int]]) -> int:
        plates = int(len(some) > 1)
        algorithm = SMC(program(lm, some, steps), particles, resampler="multinomial", ess_threshold=1.0, max_plate_nesting=plates)
        return int(algorithm.run().cost["tokens_sampled"])

    def blocks(size: int) -> int:
        pyro.set_rng_seed(0)
        return sum(sweep(prompts[begin : begin + size]) for begin in range(0, problems, size))

    def together() -> int:
        pyro.set_rng_seed(0)
        return sum(run_concurrently([lambda prompt=prompt: sweep([prompt]) for prompt in prompts], max_sequences=max_sequences))

    def counted(run: Callable[[], int]) -> Callable[[], tuple[int, int]]:
        def call() -> tuple[int, int]:
            lm.release_caches()
            passes.number = 0
            return run(), passes.number

        return call

    block = max(1, max_sequences // particles)
    ways = {
        "run_concurrently": counted(together),
        "one after the other": counted(lambda: blocks(1)),
        f"plates of {block} problems in lockstep": counted(lambda: blocks(block)),
    }
    blocks(1 if problems < block else block)  # to warm up
    measured = in_turns(ways, repeats, warm_up=0)
    per_token = {name: [seconds / tokens for seconds, (tokens, _) in each] for name, each in measured.items()}
    ours = per_token["run_concurrently"]
    return [
        {
            "filters": f"{problems} x {particles} particles, {steps} steps, prompts of {length}, batch of {max_sequences}",
            "way": name,
            "tokens/s": Spread.of([1 / each for each in per_token[name]]),
            "occupancy": Spread.of([tokens / number / max_sequences for _, (tokens, number) in each]),
            "run_concurrently is faster by": ratios(per_token[name], ours),
        }
        for name, each in measured.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 filters of 4 particles, 2 steps")
    parser.add_argument("--device-loop", action="store_true", help="the loop for accelerators, without graphs")
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    single_thread()
    torch.manual_seed(0)
    sizes = (4, 4, 2, 32, 8) if arguments.quick else (arguments.problems, 16, 2, 128, 64)
    rows = compare(*sizes, arguments.repeats, arguments.device_loop)
    print(f"{arguments.repeats} turns: median (least-most) of process CPU time\n")
    print(table(rows))
    record("scheduler", rows, vars(arguments))


if __name__ == "__main__":
    main()
