"""Steps under a JSON schema against free ones: what masks cost beside a token's forward pass.

The model of the targets with a vocabulary of 151,936 made-up tokens, 32 particles. The schema asks for records with short strings, so that
masks change all the time and particles differ. ``python benchmarks/constraints.py``, with ``--quick`` for a small case and ``--tokens N``
for the length of a step. Process CPU time on one thread, in turns; needs the extra ``constraints``.
"""

from __future__ import annotations

import argparse
import random
import string
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    single_thread()
    vocab = 4096 if options.quick else VOCAB
    lm = TransformersLM(make_model(vocab_size=vocab), byte_level_tokenizer(vocab))
    cases: dict[str, Constraint | None] = {"free": None, "JSON schema": JsonSchema(RECORDS, whitespace=False), "choices": Choices(CHOICES)}

    def run(constraint: Constraint | None) -> int:
        torch.manual_seed(0)
        context = lm.start("Write some records.").expand((options.particles,))
        step = StepOptions(stop=(), max_tokens=options.tokens, constraint=constraint)
        return int((lm.sample_step(context, context.batch_shape, step).tokens >= 0).sum())

    def seconds(measured: list[tuple[float, int]]) -> list[float]:
        """Per token of all particles."""
        return [time / tokens * options.particles for time, tokens in measured]

    measured = in_turns({name: lambda constraint=constraint: run(constraint) for name, constraint in cases.items()}, options.repeats)
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "tokens": measured[name][0][1],
            "ms per token step": Spread.of([1000 * each for each in seconds(measured[name])]),
            "times a free one": ratios(seconds(measured[name]), seconds(measured["free"])),
            "target": TARGET if name == "JSON schema" else "",
        }
        for name in cases
    ]
    print(table(rows))
    if not options.quick:
        record("constraints", rows, {"particles": options.particles, "tokens": options.tokens, "vocabulary": vocab})


CHOICES = ["".join(random.Random(seed).choices(string.ascii_lowercase + " ", k=400)) for seed in range(40)]

if __name__ == "__main__":
    main()
