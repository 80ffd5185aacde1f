"""This engine against vLLM and transformers' ``generate`` on the same 135 M model, on the clock: independent samples, and a whole filter.

Independent samples: N sequences of ``--tokens`` tokens each after one prompt. vLLM's ``LLM.generate`` runs in a process of its own
environment, ``generate`` with its default cache here. What the model's matrix products take alone bounds all who multiply so: by MKL with
``torch.mm``, and by oneDNN with packed weights, as vLLM and this engine do. Whole filter: N particles, a barrier every ``--step`` tokens
at which all are resampled; in the process, and through ``OpenAILM`` to a vLLM server of the same machine, one request a step.

A run is a later request, not the first one: vLLM keeps its memory and its prefix cache, this engine its memory and its packed weights.

All run in turns with the same number of threads, ratios are taken within a turn. The environment is that of ``vllm_cpu.sh``:

    python benchmarks/vllm_peer.py --python .vllm/bin/python [--model DIR] [--sequences 8 32 64 --threads 1 all --repeats 5]

MODEL is a directory, such as that of SmolLM2-135M-Instruct; by default random weights in its configuration. ``--no-filter`` leaves the
server out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import (
    Arm,
    Spread,
    add_threads,
    arms,
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
from engine import NEVER
from peers import Worker, particle_filter
from threads import SIZES

from ppl_llm import OpenAILM, TransformersLM
from ppl_llm.lm.base import StepOptions

SMOLLM2 = SIZES["135 M (as SmolLM2)"]
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def save(directory: Path) -> None:
    """A random model of SmolLM2's sizes."""
    make_model(**SMOLLM2).save_pretrained(directory)
    make_tokenizer(16, SMOLLM2["vocab_size"]).save_pretrained(directory)


def settings_of(threads: int) -> dict[str, str]:
    """Environment variables of vLLM."""
    return {**VLLM, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class InProcess(Worker):
    """``LLM.generate`` with so many threads."""

    def __init__(self, python: str, threads: int, **arguments: Any) -> None:
        script = str(Path(__file__).with_name("vllm_worker.py"))
        # In the process, as with a worker of its own vLLM would take a second core at one thread.
        settings = settings_of(threads) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        super().__init__("vLLM", [python, script, json.dumps(arguments | {"threads": threads})], settings)

    def run(self, sequences: int) -> int:
        """Tokens of one run."""
        return int(self.ask(str(sequences))["tokens"])


@contextlib.contextmanager
def server(python: str, threads: int, model: str) -> Iterator[str]:
    """The address of a vLLM server of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    options += ["--block-size", "32", "--enable-prompt-tokens-details"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    process = subprocess.Popen(command, env={**os.environ, **settings_of(threads)}, stdout=sys.stderr)
    try:
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}; its messages are above")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def products(sequences: int, tokens: int, model: Any) -> Callable[[], int]:
    """The products of a model's linear layers for as many tokens, as they are, and nothing else."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    states = {width: torch.randn(sequences, width) for width in {layer.in_features for layer in layers}}

    @torch.inference_mode()
    def run() -> int:
        for _ in range(tokens):
            for layer in layers:
                layer(states[layer.in_features])
        return sequences * tokens

    return run


def independent(lm: TransformersLM, prompt: list[int], sequences: int, tokens: int) -> Callable[[], int]:
    options = StepOptions((NEVER,), tokens, 1.0)

    def run() -> int:
        lm.sample_step(root(lm, prompt), torch.Size((sequences,)), options)
        return sequences * tokens

    return run


def generate(model: Any, prompt: list[int], sequences: int, tokens: int) -> Callable[[], int]:
    ids = torch.tensor([prompt]).repeat(sequences, 1)
    options = {
        "max_new_tokens": tokens,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }

    @torch.inference_mode()
    def run() -> int:
        return int(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, len(prompt) :].numel())

    return run


def rows(what: str, ours: str, runs: dict[str, Callable[[], int]], repeats: int) -> list[dict[str, Any]]:
    """Tokens per second of each way, and how many times faster ours is."""
    measured = in_turns(runs, repeats)
    rates = {name: [tokens / seconds for seconds, tokens in each] for name, each in measured.items()}
    return [
        {"task": what, "way": name, "tokens/s": Spread.of(each), f"{ours} is faster by": ratios(rates[ours], each)}
        for name, each in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=".vllm/bin/python", help="the interpreter of vLLM's environment; see vllm_cpu.sh")
    parser.add_argument("--model", help="a directory; by default random weights of SmolLM2's sizes")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--prompt", type=int, default=60, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each sequence")
    parser.add_argument("--step", type=int, default=16, help="tokens of a step of the filter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-filter", dest="filter", action="store_false", help="independent samples only")
    add_threads(parser)
    arguments = parser.parse_args()
    single_thread()
    found: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.model or folder
        if not arguments.model:
            save(Path(folder))
        lm = TransformersLM.from_pretrained(directory)
        stock = type(lm.model).from_pretrained(directory).eval()
        by_mkl = TransformersLM.from_pretrained(directory)
        for module in by_mkl.model.modules():
            vars(module).pop("forward", None)
        by_mkl.eos_ids = by_mkl.eos_ids[:0]
        ends, prompt = lm.eos_ids, words(arguments.prompt, stops=16)
        for arm in arms(arguments.threads or [1]):
            lm.eos_ids = ends[:0]  # independent samples have the same number of tokens
            peer = InProcess(arguments.python, arm.threads, model=directory, prompt=prompt, tokens=arguments.tokens)
            versions = peer.versions

            def samples(sequences: int, arm: Arm = arm, peer: InProcess = peer) -> list[dict[str, Any]]:
                ways = {
                    "ppl_llm": independent(lm, prompt, sequences, arguments.tokens),
                    "vLLM, LLM.generate": lambda: peer.run(sequences),
                    "ppl_llm, weights as they are": independent(by_mkl, prompt, sequences, arguments.tokens),
                    "transformers, generate": generate(stock, prompt, sequences, arguments.tokens),
                    "matrix products by MKL alone": products(sequences, arguments.tokens, stock),
                    "matrix products by oneDNN alone": products(sequences, arguments.tokens, lm.model),
                }
                return rows(f"{sequences} samples", "ppl_llm", ways, arguments.repeats)

            for sequences in arguments.sequences:
                own = in_arms([arm], lambda sequences=sequences: samples(sequences))
                print(table(own), flush=True)
                found += own
            peer.close()
            if not arguments.filter:
                continue
            lm.eos_ids = ends
            with server(arguments.python, arm.threads, directory) as address:
                remote = OpenAILM(address, tokenizer=directory, seeded=False)
                text = lm.decode(prompt)
                for sequences in arguments.sequences:
                    size = text, sequences, arguments.tokens, arguments.step, 1.0
                    ways = {"ppl_llm": particle_filter(lm, *size, fresh=False), "vLLM behind HTTP": particle_filter(remote, *size)}
                    what = f"filter of {sequences} particles"
                    own = in_arms([arm], lambda what=what, ways=ways: rows(what, "ppl_llm", ways, arguments.repeats))
                    print(table(own), flush=True)
                    found += own
    print(f"\nprompt {arguments.prompt}, {arguments.tokens} tokens each; {arguments.repeats} turns, time on the clock\n")
    print(table(found))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("python", "model")}
    record(
        "vllm_peer", found, settings | {"model": Path(arguments.model).name if arguments.model else "random", "versions of peers": versions}
    )


if __name__ == "__main__":
    main()
