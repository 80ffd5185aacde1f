"""Speed on an accelerator, against what the hardware can do: one command that needs nothing but this repository.

It builds models with random weights of the true sizes (Qwen2.5-1.5B and 7B, Qwen2.5-Math-PRM-7B), compares the engine with plain forward
passes in float32 at a small depth, and then times

1. the roofline: bytes per second of a large copy, and operations per second of a large product of bf16 matrices;
2. a token step of N sequences: captured as a CUDA graph, launched operation by operation, by the ordinary loop, and by ``generate``;
3. an append to the reward model: N sequences with a step of 50 tokens each, and the same from nothing;
4. resampling: what a change of ancestors adds to the next step;
5. a whole particle filter, against ``generate`` alone (no reward model, no resampling, all sequences to the end) and against the naive loop
   (``generate`` and the reward model on whole texts at every step);
6. several particle filters: one after the other, as a plate in lockstep, and as programs that share a batch.

``python benchmarks/gpu.py`` on a machine with a CUDA device; ``--small`` is the same with tiny models, also for a processor. It needs torch
>= 2.11, transformers >= 5.17 and pyro-ppl. Where there is no network, the wheels of pyro-ppl and pyro-api can be brought along:
``pip install --no-index --no-deps --target FOLDER *.whl``, then ``PYTHONPATH=FOLDER:.`` in the root of the repository. The results of a run
that is not ``--small`` are appended to ``benchmarks/results/gpu.jsonl``, from where they have to be fetched.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from common import Spread, record, root, table, words
from gpu_checks import check
from gpu_models import CONFIGS, Clock, Roofline, build, kv_bytes, linear_layers, own_products, read_bytes, tokenizer
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from ppl_llm import PAD, SMC, Context, TransformersLM, TransformersPRM, reasoning
from ppl_llm.inference import run_concurrently
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.device_loop import DeviceLoop
from ppl_llm.reward.prm.networks import Qwen2PRM

STEP = 50
"""Tokens of a reasoning step in the mean."""


class Bench:
    """Measurements of one language model beside one reward model.

    :ivar rows: what was measured.
    """

    def __init__(self, name: str, prm: str, clock: Clock, roofline: Roofline, sequences: int, context: int, steps: int) -> None:
        self.name, self.clock, self.roofline = name, clock, roofline
        self.sequences, self.context, self.steps = sequences, context, steps
        self.device, self.rows = clock.device, []
        self.words = tokenizer(name, STEP)
        self.lm = TransformersLM(build(Qwen2ForCausalLM, name, self.device, torch.bfloat16), self.words, cache_bytes=16 * 2**30)
        self.prm = TransformersPRM(build(Qwen2PRM, prm, self.device, torch.bfloat16), tokenizer(prm, STEP), cache_bytes=16 * 2**30)
        self.lm.stop_automaton("\n\n")

    def note(self, what: str, way: str, seconds: list[float], bound: float | None = None, **others: Any) -> None:
        """One row: ``bound`` is the time that the hardware needs at best."""
        each = Spread.of([1e3 * t for t in seconds])
        over = "" if bound is None else Spread.of([t / bound for t in seconds])
        row = {"model": self.name, "what": what, "way": way, "ms": each, "bound ms": "" if bound is None else 1e3 * bound, "/ bound": over}
        self.rows.append(row | {"tokens/s": others.get("rate", ""), "note": others.get("note", "")})
        print(f"{self.name}: {what}, {way}: {each:.4g} ms", file=sys.stderr)

    def prompt(self, tokens: int, seed: int = 0) -> list[int]:
        stops = round(len(self.words) / STEP)
        return words(tokens, seed, stops, len(self.words))

    def token_step(self, tokens: int) -> None:
        """What each further token of all sequences costs: steps of ``tokens`` and of one token more are timed, the prompt being there."""
        sequences, length = self.sequences, self.context - tokens - 1
        context = root(self.lm, self.prompt(length))
        read = read_bytes(self.lm.model) + sequences * (length + tokens // 2) * kv_bytes(self.lm.model)
        products = 2 * sequences * sum(layer.weight.numel() for layer in linear_layers(self.lm.model))
        bound = max(read / self.roofline.bandwidth.median, products / self.roofline.flops.median)
        what = f"token step, {sequences} sequences, context up to {self.context}"

        def further(sample: Callable[[int], Any]) -> list[float]:
            sample(1 + tokens)  # captures what is captured
            many, one = self.clock(lambda: sample(1 + tokens)), self.clock(lambda: sample(1))
            return [(a - b) / tokens for a, b in zip(many, one, strict=True)]

        def sample(number: int) -> None:
            self.lm.sample_step(context, torch.Size((sequences,)), StepOptions(stop=(), max_tokens=number))

        loops = {"operation by operation": DeviceLoop(self.lm._engine, self.lm.eos_ids), "the ordinary loop": None}
        if self.lm.device_loop is not None:
            loops = {"CUDA graphs": self.lm.device_loop} | loops
        with no_end(self.lm):
            for way, loop in loops.items():
                with using(self.lm, loop):
                    seconds = further(sample)
                    failure = loop.graphs.failure if loop is not None and loop.graphs is not None else ""
                    self.note(what, way, seconds, bound, rate=Spread.of([sequences / t for t in seconds]), note=failure)
        seconds = further(lambda number: self.generate(self.prompt(length), number))
        self.note(what, "generate", seconds, bound, rate=Spread.of([sequences / t for t in seconds]))

    @torch.inference_mode()
    def generate(self, prompt: list[int], tokens: int) -> Tensor:
        """transformers' own loop, with its own attention."""
        with attention(self.lm.model, "sdpa"):
            ids = torch.tensor([prompt], device=self.device).repeat(self.sequences, 1)
            return self._continued(ids, torch.ones_like(ids), tokens)

    def _continued(self, ids: Tensor, mask: Tensor, tokens: int, **stop: Any) -> Tensor:
        options = {"max_new_tokens": tokens, "min_new_tokens": None if stop else tokens, "do_sample": True, "top_k": 0, "pad_token_id": 0}
        continued: Tensor = self.lm.model.generate(ids, attention_mask=mask, **options, **stop)
        return continued[:, ids.shape[1] :]

    def append(self, tokens: int) -> None:
        """Score one more step of so many tokens in all sequences, each a text of its own."""
        sequences = self.sequences
        context = root(self.lm, self.prompt(64)).expand((sequences,))
        context = context.extend(self.random_step(self.context - 64 - tokens, 0))
        self.prm.step_log_odds(context)
        grown = iter(context.extend(self.random_step(tokens, seed)) for seed in range(1, 10**6))
        weights = sum(layer.weight.numel() for layer in linear_layers(self.prm.model.model))
        config, run = self.prm.model.config, sequences * (tokens + 1)
        products = 2 * run * weights + 4 * run * self.context * config.hidden_size * config.num_hidden_layers
        bound = products / self.roofline.flops.median
        what = f"PRM append, {sequences} sequences x {tokens} tokens after {self.context - tokens}"
        self.note(what, "kept keys, whole call", self.clock(lambda: self.prm.step_log_odds(next(grown))), bound)
        own = own_products(self.prm.model.model, run, self.clock)
        self.rows[-1]["note"] = f"its matrix products alone {1e3 * own:.3g} ms"

        def from_scratch() -> None:
            self.prm.release_caches()
            self.prm.step_log_odds(Context.root(self.lm, context.problems, [self.prompt(64)], False).expand((sequences,)).extend(whole))

        whole = self.random_step(self.context - 64, 0)
        self.note(what, "from nothing", self.clock(from_scratch), bound)

    def random_step(self, tokens: int, seed: int) -> Tensor:
        """``[sequences, tokens]``: words, and the end of a step."""
        step = torch.tensor([self.prompt(tokens, 10**6 * seed + sequence) for sequence in range(self.sequences)], device=self.device)
        step[:, -1] = 0
        return step

    def resample(self, tokens: int = 4) -> None:
        """A step after new ancestors against a step after none; half of the sequences have died."""
        sequences, what = torch.Size((self.sequences,)), f"resample, {self.sequences} sequences, context {self.context}"
        context = root(self.lm, self.prompt(self.context - 64 - tokens)).expand(sequences)
        options = StepOptions(stop=(), max_tokens=tokens)
        with no_end(self.lm):
            context = context.extend(self.lm.sample_step(context, sequences, StepOptions(stop=(), max_tokens=64)).tokens, ())
            rows = torch.arange(self.sequences, device=self.device)
            times = {}
            for name, ancestors in (("none", rows), ("half", torch.where(rows % 2 == 0, rows, rows - 1))):
                moved = context.reorder(ancestors)

                def once(moved: Context = moved) -> None:
                    self.lm.sample_step(context, sequences, options)  # every sequence is where it was
                    self.lm.sample_step(moved, sequences, options)

                times[name] = self.clock(once)
        added = [a - b for a, b in zip(times["half"], times["none"], strict=True)]
        state = self.sequences / 2 * 64 * kv_bytes(self.lm.model)
        self.note(what, "half of the sequences copied", added, note=f"of {state / 1e6:.3g} MB of keys that differ")

    def smc(self) -> None:
        """A particle filter with the reward model, from empty caches."""
        what, width = f"particle filter, {self.sequences} sequences x {self.steps} steps", 4 * STEP
        problem = self.words.decode(self.prompt(128))
        model = reasoning(self.lm, self.prm, "exact", max_steps=self.steps, max_tokens=width)
        tokens = self.sampling(what, "SMC", lambda: SMC(model, self.sequences, ess_threshold=0.5).run(problem).cost["tokens_sampled"])
        share = round(statistics.median(tokens) / self.sequences)
        alone = self.clock(lambda: self.generate(self.prompt(128), share))
        self.note(what, "generate alone, as many tokens", alone, rate=Spread.of([self.sequences * share / t for t in alone]))
        useful: list[int] = []
        naive = self.clock(lambda: useful.append(self.naive(self.prompt(128), width)))
        self.note(what, "the naive loop", naive, rate=Spread.of([n / t for n, t in zip(useful[1:], naive, strict=True)]))

    def filters(self, number: int = 4) -> None:
        """Several particle filters, each of which waits for its slowest sequence at every step, from empty caches."""
        particles, steps = max(1, self.sequences // number), max(1, self.steps // 2)
        what = f"{number} filters, {particles} sequences x {steps} steps"
        problems = [self.words.decode(self.prompt(128, seed)) for seed in range(number)]
        model = reasoning(self.lm, self.prm, "exact", max_steps=steps, max_tokens=4 * STEP)

        def run(some: Any) -> float:
            plates = int(isinstance(some, list))
            return float(SMC(model, particles, ess_threshold=0.5, max_plate_nesting=plates).run(some).cost["tokens_sampled"])

        ways: dict[str, Callable[[], float]] = {
            "one after the other": lambda: sum(run(problem) for problem in problems),
            "a plate in lockstep": lambda: run(problems),
            "run_concurrently": lambda: sum(run_concurrently([lambda problem=problem: run(problem) for problem in problems])),
        }
        for way, each in ways.items():
            self.sampling(what, way, each)

    def sampling(self, what: str, way: str, run: Callable[[], float]) -> list[float]:
        """Note the time of a run from empty caches that gives how many tokens it has sampled; returns these of each run."""
        tokens: list[float] = []

        def once() -> None:
            self.lm.release_caches()
            self.prm.release_caches()
            pyro.set_rng_seed(len(tokens))
            tokens.append(run())

        seconds = self.clock(once)
        self.note(what, way, seconds, rate=Spread.of([n / t for n, t in zip(tokens[1:], seconds, strict=True)]))
        return tokens

    @torch.inference_mode()
    def naive(self, prompt: list[int], width: int) -> int:
        """``generate`` and the reward model on whole texts at every step, multinomial resampling; returns the useful tokens."""
        stops = list(range(round(len(self.words) / STEP)))
        texts, total = [prompt] * self.sequences, 0
        with attention(self.lm.model, "sdpa"), attention(self.prm.model, "sdpa"):
            for _ in range(self.steps):
                new = self._continued(*self.padded(texts), width, eos_token_id=stops)
                stopped = new < len(stops)
                useful = stopped.cumsum(1) - stopped.long() == 0
                taken = [row[good].tolist() for row, good in zip(new, useful, strict=True)]
                total += sum(map(len, taken))
                grown = [text + step for text, step in zip(texts, taken, strict=True)]
                ids, mask = self.padded(grown)
                odds = torch.cat(  # eight at a time: attention over whole texts needs much memory
                    [
                        self.prm.model.log_odds(input_ids=i, attention_mask=m, logits_to_keep=1, use_cache=False)[:, -1, 0]
                        for i, m in zip(ids.split(8), mask.split(8), strict=True)
                    ]
                )
                ancestors = torch.nn.functional.logsigmoid(odds).softmax(-1).multinomial(self.sequences, replacement=True)
                texts = [grown[i] for i in ancestors.tolist()]
        return total

    def padded(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask."""
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=self.device)
        return ids, mask


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Another attention function for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def using(lm: TransformersLM, loop: DeviceLoop | None) -> Iterator[None]:
    """Another token loop for a while."""
    before = lm.device_loop
    lm.use_device_loop(loop)
    try:
        yield
    finally:
        lm.use_device_loop(before)


@contextmanager
def no_end(lm: TransformersLM) -> Iterator[None]:
    """No token ends the text, so that all sequences take the same number of tokens."""
    before = lm.eos_ids.clone()
    lm.eos_ids.fill_(PAD)
    try:
        yield
    finally:
        lm.eos_ids.copy_(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models and few sequences, on any device")
    parser.add_argument("--models", nargs="+", default=["Qwen2.5-1.5B", "Qwen2.5-7B"], choices=list(CONFIGS), help="language models")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8, help="steps of the particle filter")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.models, arguments.sequences, arguments.context, arguments.steps = ["small"], 6, 160, 2
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device; --small runs on a processor")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    logging.basicConfig(level=logging.WARNING)
    clock = Clock(device, arguments.repeats)
    for name in arguments.models:
        for line in check(name, "small" if arguments.small else "Qwen2.5-Math-PRM-7B", device):
            print(line)
    roofline = Roofline.measured(clock, arguments.small)
    print(f"copy {roofline.bandwidth.median / 1e9:.4g} GB/s, bf16 products {roofline.flops.median / 1e12:.4g} TFLOP/s\n")
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        prm = "small" if arguments.small else "Qwen2.5-Math-PRM-7B"
        bench = Bench(name, prm, clock, roofline, arguments.sequences, arguments.context, arguments.steps)
        bench.token_step(8 if arguments.small else 64)
        bench.append(STEP)
        bench.resample()
        bench.smc()
        bench.filters()
        rows += bench.rows
        del bench
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(rows))
    if not arguments.small:
        settings = {name: getattr(arguments, name) for name in ("models", "sequences", "context", "steps", "repeats")}
        best = {"bytes per second": roofline.bandwidth._asdict(), "bf16 operations per second": roofline.flops._asdict()}
        record("gpu", rows, settings | best, device.type)


if __name__ == "__main__":
    main()
