"""What a token costs beside its forward pass: the draw from the vocabulary, and the score of a step that was proposed.

Draws: N rows of logits in bfloat16 at a temperature, from some of them at a time, as the package does on a CPU, and from all at once.
Scores: a filter of the power target whose steps are proposed at a lower temperature, with their log-probabilities from the logits that
they were drawn from, and by a second pass over each step.

    python benchmarks/drawing.py [--quick --repeats 5 --vocab 151936]

A random model of 6 million parameters; ratios within one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import torch
from common import Spread, in_turns, make_model, make_tokenizer, ratios, record, single_thread, table, words

from ppl_llm import SMC, LLMStep, StepProposal, TransformersLM
from ppl_llm.inference import barrier, power
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import sampling

ALPHA = 4.0
DRAWS = 10
"""In a call."""


def draws(rows: int, vocab: int, at_once: int) -> Callable[[], None]:
    logits = (3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    u, options = torch.rand(rows, dtype=torch.float64), StepOptions(("\n",), 1, 0.8)

    @torch.inference_mode()
    def run() -> None:
        with mock.patch.object(sampling, "_IN_CACHE", at_once):
            for _ in range(DRAWS):
                sampling.draw(logits, u, options)

    return run


def filtered(lm: TransformersLM, particles: int, tokens: int, second_pass: bool) -> Callable[[], int]:
    prompt = lm.decode(words(128, stops=16))

    def program() -> Any:
        context = lm.start(prompt)
        for t in range(4):
            step = pyro.sample(f"step_{t}", LLMStep(context, tokens_per_step=tokens))
            context = barrier(context.extend(step, ()))
        return context

    def run() -> int:
        pyro.set_rng_seed(0)
        lm.release_caches()
        filters = SMC(power(program, ALPHA), particles, proposals=StepProposal(temperature=1 / ALPHA), ess_threshold=1.0)
        if not second_pass:
            return int(filters.run().cost["tokens_sampled"])
        with mock.patch.object(LLMStep, "proposed_by", lambda self, proposal: None):
            return int(filters.run().cost["tokens_sampled"])

    return run


def compared(task: str, ways: dict[str, Callable[[], Any]], repeats: int, times: int = 1) -> dict[str, Any]:
    """A row of the table for two ways, the package's first.

    :param int times: how often a call does the task.
    """
    ours, other = ([seconds for seconds, _ in each] for each in in_turns(ways, repeats).values())
    milliseconds = [Spread.of([1000 * seconds / times for seconds in each]) for each in (ours, other)]
    return {"task": task, "milliseconds": milliseconds[0], "otherwise": milliseconds[1], "faster by": ratios(other, ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=151936, help="of the draws: Qwen's by default")
    parser.add_argument("--quick", action="store_true", help="a small vocabulary and short steps, in seconds")
    arguments = parser.parse_args()
    single_thread()
    found: list[dict[str, Any]] = []
    vocab, tokens = (20_000, 4) if arguments.quick else (arguments.vocab, 16)
    for rows in (8, 64):
        ways = {"some at a time": draws(rows, vocab, sampling._IN_CACHE), "all at once": draws(rows, vocab, rows * vocab)}
        found.append(compared(f"draws from {rows} rows of {vocab:,} logits", ways, arguments.repeats, DRAWS))
    lm = TransformersLM(make_model(), make_tokenizer(16))
    for particles in (8, 64):
        both = {"the same logits": filtered(lm, particles, tokens, False), "a second pass": filtered(lm, particles, tokens, True)}
        found.append(compared(f"power target, {particles} particles, 4 steps of {tokens} tokens", both, arguments.repeats))
    print(table(found))
    record("drawing", found, vars(arguments))


if __name__ == "__main__":
    main()
