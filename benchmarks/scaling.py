"""How cost grows: CPU time of a filter against particles, steps, context and problems, and the memory it takes.

A slope is that of the least-squares line on log-log axes: 1 is proportional, 0 is constant. Steps have a fixed number of tokens, so that
nothing but the quantity varies; times are those of whole runs from an empty cache.

Memory: bytes of all KV caches over sequences x tokens x bytes of a token's keys and values (columns are made in advance, by half at most),
and the number of rows of the largest tensor that has a column for each token of the vocabulary: one per sequence, however many tokens there
are.

``python benchmarks/scaling.py``, with ``--quick`` for short lines. Process CPU time on one thread, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from common import VOCAB, Spread, in_turns, make_model, make_tokenizer, record, root, single_thread, slope, table, words
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_llm import SMC, Context, LLMStep, barrier
from ppl_llm.lm.transformers_lm import TransformersLM

BASE = {"particles": 16, "steps": 4, "prompt": 128, "problems": 1}
LINES = {
    "particles": (1, 4, 16, 64, 256),
    "steps": (2, 4, 8, 16, 32),
    "prompt": (64, 128, 256, 512, 1024, 2048),
    "problems": (1, 2, 4, 8, 16),
}
TOKENS = 8
"""Tokens of each step."""


def filtered(lm: TransformersLM, particles: int, steps: int, prompt: int, problems: int) -> Callable[[], int]:
    """A run of a filter with multinomial resampling after each step, from an empty cache; gives the tokens sampled."""
    prompts = [words(prompt, seed) for seed in range(problems)]

    def program() -> Context:
        context = root(lm, *prompts)
        with pyro.plate("problems", problems):
            for t in range(steps):
                context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, tokens_per_step=TOKENS)), stop=())
                context = barrier(context)
        return context

    def run() -> int:
        lm.release_caches()
        smc = SMC(program, particles, resampler="multinomial", ess_threshold=1.0, max_plate_nesting=1)
        return int(smc.run().cost["tokens_sampled"])

    return run


def line(lm: TransformersLM, quantity: str, values: Sequence[int], repeats: int) -> dict[str, Any]:
    """Times against one quantity, and their slope in each turn."""
    runs = {str(value): filtered(lm, **(BASE | {quantity: value})) for value in values}
    measured = in_turns(runs, repeats)
    for value, found in measured.items():
        sizes = BASE | {quantity: int(value)}
        assert {tokens for _, tokens in found} == {sizes["particles"] * sizes["problems"] * sizes["steps"] * TOKENS}
    seconds = [[found[turn][0] for found in measured.values()] for turn in range(repeats)]
    middle = [f"{1e3 * Spread.of(each).median:.0f}" for each in zip(*seconds, strict=True)]
    return {
        "cost against": quantity,
        "values": " ".join(map(str, values)),
        "result": "ms " + " ".join(middle),
        "slope": Spread.of([slope(values, each) for each in seconds]),
    }


class VocabularyRows(TorchDispatchMode):
    """Finds the largest tensor with a column for each token of the vocabulary, apart from the model's weights.

    :ivar int most: its rows.
    """

    def __init__(self, model: torch.nn.Module, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            counts = isinstance(each, Tensor) and each.dim() > 1 and each.shape[-1] == self._columns
            if counts and each.untyped_storage().data_ptr() not in self._weights:
                self.most = max(self.most, each.shape[:-1].numel())
        return result


def memory(lm: TransformersLM, changes: dict[str, int]) -> dict[str, Any]:
    """KV cache bytes and rows of the vocabulary after a run; deterministic, hence once."""
    sizes = BASE | changes
    run = filtered(lm, **sizes)
    with VocabularyRows(lm.model, VOCAB) as rows:
        run()
    config = lm.model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads) * 4
    sequences = sizes["particles"] * sizes["problems"]
    held = sum(cache.num_bytes for cache in lm._engine.pool.caches)
    needed = sequences * (sizes["prompt"] + sizes["steps"] * TOKENS) * per_token
    [(quantity, value)] = changes.items()
    return {
        "cost against": f"memory, {quantity} = {value}",
        "values": f"{sequences} sequences x {needed // sequences // per_token} tokens x {per_token} bytes = {needed / 2**20:.1f} MiB",
        "result": f"KV caches {held / needed:.2f} x that; {rows.most} rows of the vocabulary",
        "slope": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first three values of each line")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    single_thread()
    lm = TransformersLM(make_model(), make_tokenizer())
    lm.eos_ids = lm.eos_ids[:0]  # no token ends the text: every run samples as many
    values = {quantity: each[:3] if arguments.quick else each for quantity, each in LINES.items()}
    rows = [line(lm, quantity, each, arguments.repeats) for quantity, each in values.items()]
    rows += [memory(lm, {quantity: each[-1]}) for quantity, each in values.items()]
    base = ", ".join(f"{value} {quantity}" for quantity, value in BASE.items())
    print(f"base: {base} (tokens), {TOKENS} tokens a step; {arguments.repeats} turns: median (least-most)\n")
    print(table(rows))
    record("scaling", rows, vars(arguments))


if __name__ == "__main__":
    main()
