"""Speed of the decode engine in a particle-filter-like loop, in process CPU time on one thread.

Compares, on a random Qwen2 model,

1. ``TransformersLM``: N lanes take K steps of at most S tokens, multinomial resampling after each step;
2. bare forward passes over transformers' ``StaticCache``: as many tokens in full batches, without sampling, ragged lanes or resampling:
   what the model itself costs;
3. transformers' ``generate`` on the whole text at every step.

Run ``python benchmarks/engine.py``, with ``--quick`` for small sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, StaticCache

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.protocol import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM

VOCAB, STOPS = 8192, 80


def make_model(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A made-up byte-level vocabulary in which about one token in a hundred ends a step."""
    newline = "Ċ"
    stops = [f"s{i}{newline}{newline}" for i in range(STOPS)]
    words = [f"w{i}" for i in range(VOCAB - STOPS - 1)]
    vocab = {text: i for i, text in enumerate([*stops, *words, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def root(lm: TransformersLM, prompt: list[int]) -> Context:
    return Context.root(lm, ("benchmark",), [prompt], batched=False)


def engine_loop(lm: TransformersLM, prompt: list[int], lanes: int, steps: int, width: int) -> int:
    """Returns the number of tokens sampled."""
    torch.manual_seed(1)
    options = StepOptions(max_tokens=width)
    context, total = root(lm, prompt), 0
    for _ in range(steps):
        step, _ = lm.sample_step(context, torch.Size((lanes,)), options)
        total += int((step != PAD).sum())
        context = context.extend(step).reorder(torch.randint(0, lanes, (lanes,)))
    return total


@torch.inference_mode()
def bare_forwards(model: Qwen2ForCausalLM, prompt: list[int], lanes: int, tokens: int) -> int:
    """Full batches of one-token forward passes until ``tokens`` tokens are done."""
    model.set_attn_implementation("sdpa")
    passes = -(-tokens // lanes)
    single = StaticCache(config=model.config, max_cache_len=len(prompt) + passes)
    model(torch.tensor([prompt]), past_key_values=single, logits_to_keep=1)
    cache = StaticCache(config=model.config, max_cache_len=len(prompt) + passes)
    for layer, prefilled in zip(cache.layers, single.layers, strict=True):
        prompt_keys = prefilled.keys[:, :, : len(prompt)].expand(lanes, -1, -1, -1)
        prompt_values = prefilled.values[:, :, : len(prompt)].expand(lanes, -1, -1, -1)
        layer.update(prompt_keys, prompt_values)
    ids = torch.zeros(lanes, 1, dtype=torch.long)
    for k in range(passes):
        positions = torch.full((1, 1), len(prompt) + k)
        model(ids, past_key_values=cache, position_ids=positions, logits_to_keep=1)
    return passes * lanes


@torch.inference_mode()
def prefill_each_step(model: Qwen2ForCausalLM, prompt: list[int], lanes: int, steps: int, width: int) -> int:
    """``generate`` on left-padded whole texts at every step; returns the number of useful tokens."""
    model.set_attn_implementation("sdpa")
    torch.manual_seed(1)
    texts, total = [prompt] * lanes, 0
    stops = list(range(STOPS))
    for _ in range(steps):
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        new = model.generate(ids, attention_mask=mask, max_new_tokens=width, do_sample=True, top_k=0, eos_token_id=stops, pad_token_id=0)[
            :, longest:
        ]
        stopped = (new < STOPS).cumsum(1) - (new < STOPS).long()
        steps_taken = [row[gone == 0].tolist() for row, gone in zip(new, stopped, strict=True)]
        total += sum(map(len, steps_taken))
        grown = [text + step for text, step in zip(texts, steps_taken, strict=True)]
        texts = [grown[i] for i in torch.randint(0, lanes, (lanes,)).tolist()]
    return total


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """CPU time, and the work done."""
    began = time.process_time()
    done = run()
    return time.process_time() - began, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 lanes, 2 steps of at most 16 tokens, prompt 32")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the best counts")
    arguments = parser.parse_args()
    lanes, length, steps, width = (8, 32, 2, 16) if arguments.quick else (64, 256, 5, 64)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    prompt = torch.randint(STOPS, VOCAB - 1, (length,), generator=torch.Generator().manual_seed(0)).tolist()

    lm = TransformersLM(make_model(), make_tokenizer())
    lm.stop_automaton("\n\n")

    def run_engine() -> int:
        lm.release_caches()
        return engine_loop(lm, prompt, lanes, steps, width)

    model = make_model()
    with CostMeter() as meter:
        tokens = run_engine()
    # In turns, so that whatever else the machine does meets both alike.
    pairs = [(timed(run_engine), timed(lambda: bare_forwards(model, prompt, lanes, tokens))) for _ in range(arguments.repeats)]
    seconds, tokens = min(engine for engine, _ in pairs)
    bare_seconds, bare_tokens = min(bare for _, bare in pairs)
    naive_seconds, naive_tokens = timed(lambda: prefill_each_step(model, prompt, lanes, steps, width))

    print(f"N = {lanes} lanes, prompt {length}, {steps} steps of at most {width} tokens; CPU seconds of one thread, best of several")
    print(f"{'':38}{'tokens':>8}{'seconds':>9}{'tokens/s':>10}{'time per token, engine = 1':>28}")
    for name, done, spent in (
        ("TransformersLM", tokens, seconds),
        ("bare StaticCache forward passes", bare_tokens, bare_seconds),
        ("generate() on the whole text each step", naive_tokens, naive_seconds),
    ):
        print(f"{name:38}{done:8d}{spent:9.2f}{done / spent:10.0f}{spent / done / (seconds / tokens):28.2f}")
    counts = meter.totals
    ratio = seconds / tokens / (bare_seconds / bare_tokens)
    print(f"engine: {counts['lm_forwards']} forward passes, {counts['tokens_prefilled']} tokens prefilled, {ratio:.2f} x bare")


if __name__ == "__main__":
    main()
