"""Steps under a JSON schema against free ones: what masks cost beside a token's forward pass.

The model of the targets with a vocabulary of 151,936 made-up tokens, 32 particles. The schema asks for records with short strings, so that
masks change all the time and particles differ. ``python benchmarks/constraints.py``, with ``--quick`` for a small case and ``--tokens N``
for the length of a step. Process CPU time on one thread, in turns; needs the extra ``constraints``.

``--memory`` measures the memory of 256 particles instead: the peak of a process of its own for each case, above what it held with the model
loaded.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import Spread, in_turns, make_model, ratios, record, single_thread, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppl_llm.constraints import Choices, Constraint, JsonSchema
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM

TARGET = 1.25
VOCAB = 151_936
RECORDS = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}, "kind": {"enum": ["a", "b", "c"]}},
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    },
}


def byte_level_tokenizer(size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """All bytes, and random words and punctuation of real vocabularies' lengths; the last token ends the text."""
    rng = random.Random(seed)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ['{"', '":', '","', '"}', '"},{"', "}]", "},", "],", ":[", "123", "00"]
    tokens = dict.fromkeys([*sorted(alphabet), *marks])
    while len(tokens) < size - 1:
        word = "".join(rng.choices(string.ascii_letters, k=rng.randrange(2, 10)))
        tokens[rng.choice(["", "Ġ"]) + word] = None
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def resident(field: str) -> float:
    """MiB of this process, now (``VmRSS``) or at most since the last reset (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def memory(case: str, particles: int, tokens: int, vocab: int) -> None:
    """Print the peak of one case as JSON: what a process of its own does."""
    lm = TransformersLM(make_model(vocab_size=vocab), byte_level_tokenizer(vocab))
    lm.stop_automaton(())
    constraint = cases()[case]
    if constraint is not None:
        constraint.states(lm.vocabulary, torch.zeros(1, 0, dtype=torch.long)).masks()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is held now
    before = resident("VmRSS")
    context = lm.start("Write some records.").expand((particles,))
    lm.sample_step(context, context.batch_shape, StepOptions(stop=(), max_tokens=tokens, constraint=constraint))
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def cases() -> dict[str, Constraint | None]:
    return {"free": None, "JSON schema": JsonSchema(RECORDS, whitespace=False), "choices": Choices(CHOICES)}


def compare_memory(particles: int, tokens: int, vocab: int, repeats: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in cases()}
    for _ in range(repeats):
        for name, grown in found.items():
            command = [
                sys.executable,
                __file__,
                "--case",
                name,
                "--particles",
                str(particles),
                "--tokens",
                str(tokens),
                "--vocab",
                str(vocab),
            ]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            grown.append(answer["peak"] - answer["before"])
    rows = [{"step": name, "MiB": Spread.of(grown), "times a free one": ratios(grown, found["free"])} for name, grown in found.items()]
    print(table(rows))
    if vocab == VOCAB:
        record("constraints_memory", rows, {"particles": particles, "tokens": tokens, "vocabulary": vocab})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--particles", type=int, help="32; 256 with --memory")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--vocab", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    single_thread()
    vocab = options.vocab or (4096 if options.quick else VOCAB)
    options.particles = options.particles or (256 if options.memory else 32)
    if options.case is not None:
        return memory(options.case, options.particles, options.tokens, vocab)
    if options.memory:
        return compare_memory(options.particles, options.tokens, vocab, options.repeats)
    lm = TransformersLM(make_model(vocab_size=vocab), byte_level_tokenizer(vocab))

    def run(constraint: Constraint | None) -> int:
        torch.manual_seed(0)
        context = lm.start("Write some records.").expand((options.particles,))
        step = StepOptions(stop=(), max_tokens=options.tokens, constraint=constraint)
        return int((lm.sample_step(context, context.batch_shape, step).tokens >= 0).sum())

    def seconds(measured: list[tuple[float, int]]) -> list[float]:
        """Per token of all particles."""
        return [time / tokens * options.particles for time, tokens in measured]

    measured = in_turns({name: lambda constraint=constraint: run(constraint) for name, constraint in cases().items()}, options.repeats)
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "tokens": measured[name][0][1],
            "ms per token step": Spread.of([1000 * each for each in seconds(measured[name])]),
            "times a free one": ratios(seconds(measured[name]), seconds(measured["free"])),
            "target": TARGET if name == "JSON schema" else "",
        }
        for name in measured
    ]
    print(table(rows))
    if not options.quick:
        record("constraints", rows, {"particles": options.particles, "tokens": options.tokens, "vocabulary": vocab})


CHOICES = ["".join(random.Random(seed).choices(string.ascii_lowercase + " ", k=400)) for seed in range(40)]

if __name__ == "__main__":
    main()
