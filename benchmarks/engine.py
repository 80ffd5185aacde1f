"""Time per token of ``TransformersLM`` in a particle filter's loop, against bare forward passes of the same model.

In every turn each lane takes a step of ``--tokens`` tokens after a multinomial resampling. All steps are of the same length, so that both
sides run as many passes over as many lanes:

1. ``TransformersLM``: finding the lanes' keys and values again, copying those of lanes that died, sampling with log-probabilities, watching
   for the end of the step;
2. the model's forward pass over transformers' ``StaticCache``, made of the length needed and for lanes of equal length: no sampling and no
   resampling; what the model itself costs.

``python benchmarks/engine.py``, with ``--quick`` for small cases. Process CPU time on one thread, in turns.
"""

from __future__ import annotations

import argparse

import torch
from common import Spread, make_model, make_tokenizer, ratios, record, root, single_thread, table, timed, words
from transformers import Qwen2ForCausalLM, StaticCache

from ppl_llm.context import Context
from ppl_llm.lm.protocol import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM

NEVER = "a text that no token ends"
APART = 48
"""Tokens since the lanes parted from their common prompt."""


class Filter:
    """A particle filter's loop that stands at ``length`` tokens."""

    def __init__(self, lm: TransformersLM, lanes: int, length: int, tokens: int) -> None:
        torch.manual_seed(0)
        self.lm, self.lanes, self.options = lm, lanes, StepOptions(stop=NEVER, max_tokens=tokens)
        lm.stop_automaton(NEVER)
        self.context: Context = root(lm, words(length - APART))
        step, _ = lm.sample_step(self.context, torch.Size((lanes,)), StepOptions(stop=NEVER, max_tokens=APART))
        self.context = self.context.extend(step, NEVER)

    def step(self) -> None:
        context = self.context.reorder(torch.randint(0, self.lanes, (self.lanes,)))
        step, _ = self.lm.sample_step(context, torch.Size((self.lanes,)), self.options)
        self.context = context.extend(step, NEVER)


class BareForwards:
    """One-token forward passes over a ``StaticCache`` that holds ``length`` tokens; what its keys are does not matter for the time."""

    def __init__(self, model: Qwen2ForCausalLM, lanes: int, length: int, tokens: int) -> None:
        self.model, self.ids, self.length, self.tokens = model, torch.zeros(lanes, 1, dtype=torch.long), length, tokens
        self.cache = StaticCache(config=model.config, max_cache_len=length + tokens)
        config = model.config
        shape = (lanes, config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads)
        for layer in self.cache.layers:
            layer.update(torch.randn(shape), torch.randn(shape))

    @torch.inference_mode()
    def step(self) -> None:
        for k in range(self.tokens):
            positions = torch.full((1, 1), self.length + k)
            self.model(self.ids, past_key_values=self.cache, position_ids=positions, logits_to_keep=1)


def compare(lanes: int, length: int, tokens: int, repeats: int) -> dict[str, object]:
    """Both ways in turns; contexts of ``length`` tokens in the middle turn."""
    lm, model = TransformersLM(make_model(), make_tokenizer()), make_model()
    model.set_attn_implementation("sdpa")
    start = length - tokens * (repeats + 1) // 2
    ours, warm_up = Filter(lm, lanes, start, tokens), 1
    engine, bare = [], []
    for turn in range(-warm_up, repeats):
        forwards = BareForwards(model, lanes, start + (turn + warm_up) * tokens, tokens)
        times = timed(ours.step)[0], timed(forwards.step)[0]
        if turn >= 0:
            engine.append(times[0])
            bare.append(times[1])
    return {
        "lanes": lanes,
        "context": length,
        "engine, ms per token step": Spread.of([1e3 * each / tokens for each in engine]),
        "bare StaticCache, ms": Spread.of([1e3 * each / tokens for each in bare]),
        "engine / bare": ratios(engine, bare),
        "engine, tokens/s": Spread.of([lanes * tokens / each for each in engine]).median,
        "bare, tokens/s": Spread.of([lanes * tokens / each for each in bare]).median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 lanes, context 128")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each step")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    cases = [(8, 128)] if arguments.quick else [(lanes, length) for length in arguments.contexts for lanes in arguments.lanes]
    single_thread()
    rows = [compare(lanes, length, arguments.tokens, arguments.repeats) for lanes, length in cases]
    print(f"steps of {arguments.tokens} tokens after resampling, {arguments.repeats} turns: median (least-most) of process CPU time\n")
    print(table(rows))
    record("engine", rows, vars(arguments))


if __name__ == "__main__":
    main()
