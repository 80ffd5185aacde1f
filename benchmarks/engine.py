"""Time per token of ``TransformersLM`` in a particle filter's loop, against bare forward passes of the same model.

In every turn each sequence takes a step of ``--tokens`` tokens after a multinomial resampling. All steps are of the same length, so that
both sides run as many passes over as many sequences; a quarter of the context is a prompt that all sequences share:

1. ``TransformersLM``: finding the sequences' keys and values again, copying those of sequences that died, sampling with log-probabilities,
   watching for the end of the step;
2. the model's forward pass over transformers' ``StaticCache``, made of the length needed and for sequences of equal length: no sampling and
   no resampling; what the model itself costs.

``python benchmarks/engine.py``, with ``--quick`` for small cases. Process CPU time on one thread, in turns; ``--threads 1 all`` for time on
the clock, with one thread and with all, in one run.
"""

from __future__ import annotations

import argparse

import torch
from common import (
    VOCAB,
    Spread,
    add_threads,
    arms,
    clock,
    in_arms,
    make_model,
    make_tokenizer,
    ratios,
    record,
    root,
    single_thread,
    table,
    timed,
    words,
)
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

from ppl_llm.context import Context
from ppl_llm.context_cache import CacheEntry
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache.support import cache_keyword
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM

NEVER = "a text that no token ends"


class Filter:
    """A particle filter's loop that stands at ``length`` tokens, a quarter of them a common prompt.

    Keys and values are random numbers that are given to the engine as a stored cache: what they are does not matter for the time.
    """

    def __init__(self, lm: TransformersLM, sequences: int, length: int, tokens: int) -> None:
        torch.manual_seed(0)
        self.lm, self.sequences, self.options = lm, sequences, StepOptions(stop=NEVER, max_tokens=tokens)
        lm.stop_automaton(NEVER)
        prompt = length // 4
        steps = torch.randint(0, VOCAB // 2, (sequences, length - prompt))
        self.context: Context = root(lm, words(prompt)).extend(steps, NEVER)
        # The last token of a step has no keys yet.
        layers = [[states[:, :, :-1] for states in layer] for layer in random_layers(lm.model.config, sequences, length)]
        state = {"capacity": length, "tokens": self.context.tokens[:, :-1], "lengths": self.context.lengths - 1, "layers": layers}
        self.context.cache_entries[lm._key] = CacheEntry(lm._engine.pool.adopt(state), {"rows": torch.arange(sequences)})

    def step(self) -> None:
        context = self.context.reorder(torch.randint(0, self.sequences, (self.sequences,)))
        with CostMeter() as meter:
            step, _ = self.lm.sample_step(context, torch.Size((self.sequences,)), self.options)
        assert meter.totals["tokens_prefilled"] <= self.sequences  # the last token of each sequence and nothing of its prefix
        self.context = context.extend(step, NEVER)


def random_layers(config: Qwen2Config, sequences: int, length: int) -> list[list[Tensor]]:
    """Keys and values of each layer."""
    shape = (sequences, config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads)
    return [[torch.randn(shape), torch.randn(shape)] for _ in range(config.num_hidden_layers)]


class BareForwards:
    """One-token forward passes over a ``StaticCache`` that holds ``length`` tokens."""

    def __init__(self, model: Qwen2ForCausalLM, sequences: int, length: int, tokens: int) -> None:
        self.model, self.ids, self.length, self.tokens = model, torch.zeros(sequences, 1, dtype=torch.long), length, tokens
        cache = StaticCache(config=model.config, max_cache_len=length + tokens)
        self.cached = {cache_keyword(model): cache}
        for layer, states in zip(cache.layers, random_layers(model.config, sequences, length), strict=True):
            layer.update(*states)

    @torch.inference_mode()
    def step(self) -> None:
        for k in range(self.tokens):
            positions = torch.full((1, 1), self.length + k)
            self.model(self.ids, **self.cached, position_ids=positions, logits_to_keep=1)


def compare(sequences: int, length: int, tokens: int, repeats: int) -> dict[str, object]:
    """Both ways in turns; contexts of ``length`` tokens in the middle turn."""
    lm, model = TransformersLM(make_model(), make_tokenizer()), make_model()
    lm.eos_ids = lm.eos_ids[:0]  # no token ends the text: every turn runs all sequences
    model.set_attn_implementation("sdpa")
    start = length - tokens * (repeats + 1) // 2
    ours, warm_up = Filter(lm, sequences, start, tokens), 1
    engine, bare = [], []
    for turn in range(-warm_up, repeats):
        forwards = BareForwards(model, sequences, start + (turn + warm_up) * tokens, tokens)
        times = timed(ours.step)[0], timed(forwards.step)[0]
        if turn >= 0:
            engine.append(times[0])
            bare.append(times[1])
    return {
        "sequences": sequences,
        "context": length,
        "engine, ms per token step": Spread.of([1e3 * each / tokens for each in engine]),
        "bare StaticCache, ms": Spread.of([1e3 * each / tokens for each in bare]),
        "engine / bare": ratios(engine, bare),
        "engine, tokens/s": Spread.of([sequences * tokens / each for each in engine]).median,
        "bare, tokens/s": Spread.of([sequences * tokens / each for each in bare]).median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 sequences, context 128")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each step")
    parser.add_argument("--repeats", type=int, default=7)
    add_threads(parser)
    arguments = parser.parse_args()
    cases = [(8, 128)] if arguments.quick else [(sequences, length) for length in arguments.contexts for sequences in arguments.sequences]
    single_thread()
    measured = arms(arguments.threads)
    # Case by case, so that what else the machine does meets all numbers of threads alike.
    rows = [row for case in cases for row in in_arms(measured, lambda case=case: [compare(*case, arguments.tokens, arguments.repeats)])]
    print(f"steps of {arguments.tokens} tokens after resampling, {arguments.repeats} turns: median (least-most) of {clock(measured)}\n")
    print(table(rows))
    record("engine", rows, vars(arguments))


if __name__ == "__main__":
    main()
