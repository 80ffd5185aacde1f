"""Scoring steps with ``TransformersPRM``: only what is new, against whole traces; and how much of what is computed is padding.

Sequences share a prompt and then hold different steps; the new step of each is of random length (Gamma, standard deviation half the mean).
The network is that of the targets in the layout of Qwen2.5-Math-PRM.

1. the new steps, with the keys and values of everything before them kept;
2. the same without anything kept: the prompt once, then every trace;
3. one forward pass of transformers over the padded traces, as published recipes have it;
4. that pass over the padded new steps, on top of keys and values kept in a ``DynamicCache``: incremental, but not packed.

All must give the same scores. ``python benchmarks/prm.py``, with ``--quick`` for a small case. Process CPU time on one thread, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import STEP_TOKEN, Spread, make_config, make_model, make_tokenizer, ratios, record, root, single_thread, table, timed, words
from torch import Tensor
from transformers import DynamicCache

from ppl_llm import Context, TransformersPRM
from ppl_llm.kv_cache.support import cache_keyword
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.networks import Qwen2PRM

SHARED = 64
"""Tokens of the prompt, which all sequences share."""


class Positions:
    """Counts the token positions that come out of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.total = 0
        module.register_forward_hook(self._add)

    def _add(self, module: Any, args: Any, output: Tensor) -> None:
        self.total += output.shape[:-1].numel()


class Traces:
    """Sequences with steps of given lengths, as a context and as the token ids that the reward model reads."""

    def __init__(self, lm: TransformersLM, sequences: int) -> None:
        prompt = words(SHARED)
        self.context: Context = root(lm, prompt)
        self.ids = [prompt] * sequences
        self._step_id = lm.tokenizer.get_vocab()[STEP_TOKEN]

    def grow(self, lengths: list[int]) -> None:
        """A new step of each sequence, its step token included in the length."""
        new = [words(length - 1, seed=int(torch.randint(10**6, ()))) for length in lengths]
        step = torch.full((len(new), max(lengths)), -1)
        for row, tokens in zip(step, new, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        self.context = self.context.extend(step)
        self.ids = [[*ids, *tokens, self._step_id] for ids, tokens in zip(self.ids, new, strict=True)]


class Published:
    """The recipe of a model card: a padded batch through transformers' own attention, read at the last token of each sequence."""

    def __init__(self) -> None:
        self.network = make_reward_model()
        self.network.set_attn_implementation("sdpa")

    @torch.inference_mode()
    def odds(self, ids: list[list[int]], start: int = 0, cache: DynamicCache | None = None) -> Tensor:
        """From position ``start`` on; padding on the right does not reach back to any token."""
        width = max(map(len, ids))
        batch = torch.tensor([each[start:] + [0] * (width - len(each)) for each in ids])
        odds = self.network.log_odds(input_ids=batch, use_cache=cache is not None, **{cache_keyword(self.network): cache})
        return odds[range(len(ids)), [len(each) - 1 - start for each in ids], 0]


def make_reward_model() -> Qwen2PRM:
    torch.manual_seed(0)
    return Qwen2PRM(make_config()).eval()


def compare(sequences: int, prefix: int, mean: int, repeats: int) -> list[dict[str, Any]]:
    """Each way to score one new step of each sequence after ``prefix`` tokens."""
    lm, published = TransformersLM(make_model(), make_tokenizer()), Published()
    prm = TransformersPRM(make_reward_model(), make_tokenizer(), system_prompt=None)
    run, heads = Positions(prm.model.get_input_embeddings()), Positions(prm.model.score)
    measured: dict[str, list[dict[str, float]]] = {}
    for turn in range(-1, repeats):
        torch.manual_seed(turn + 1)
        traces, third = Traces(lm, sequences), (prefix - SHARED) // 3
        for length in (third, third, prefix - SHARED - 2 * third):
            traces.grow([length] * sequences)
        prm.step_log_odds(traces.context)
        cache = DynamicCache(config=published.network.config)
        published.odds(traces.ids, cache=cache)
        lengths = torch.distributions.Gamma(4.0, 4.0 / mean).sample(torch.Size((sequences,))).round().clamp(2, 4 * mean).long().tolist()
        traces.grow(lengths)
        ways: dict[str, Callable[[], Tensor]] = {
            "new steps": lambda traces=traces: prm.step_log_odds(traces.context)[:, -1],
            "whole traces": lambda traces=traces: whole_traces(prm, traces.context),
            "transformers, padded whole traces": lambda traces=traces: published.odds(traces.ids),
            "transformers, padded new steps": lambda traces=traces, cache=cache: published.odds(traces.ids, prefix, cache),
        }
        expected = None
        for name, way in ways.items():
            run.total = heads.total = 0
            seconds, odds = timed(way)
            expected = odds if expected is None else expected
            torch.testing.assert_close(odds, expected, atol=1e-4, rtol=1e-4)
            start = prefix if name.endswith("new steps") else 0
            necessary = sum(len(each) - start for each in traces.ids) - (0 if start else (sequences - 1) * SHARED)
            computed = run.total or sequences * (max(map(len, traces.ids)) - start)
            if turn >= 0:
                figures = {"seconds": seconds, "computed": computed, "padding": 1 - necessary / computed, "head": heads.total}
                measured.setdefault(name, []).append(figures)
    ours = [each["seconds"] for each in measured["new steps"]]
    return [
        {
            "way": name,
            "sequences": sequences,
            "prefix": prefix,
            "mean step": mean,
            "ms": Spread.of([1e3 * each["seconds"] for each in found]),
            "new steps are faster by": ratios([each["seconds"] for each in found], ours),
            "positions computed": Spread.of([each["computed"] for each in found]).median,
            "of them not needed": Spread.of([each["padding"] for each in found]).median,
            "positions of the head": Spread.of([each["head"] for each in found]).median,
        }
        for name, found in measured.items()
    ]


def whole_traces(prm: TransformersPRM, context: Context) -> Tensor:
    prm.release_caches()
    return prm.step_log_odds(replace(context, cache_entries={}))[:, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 sequences, prefix 130")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[237, 482])
    parser.add_argument("--step", type=int, default=40, help="mean length of a step in tokens")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    single_thread()
    cases = [(4, 130)] if arguments.quick else [(arguments.sequences, prefix) for prefix in arguments.prefixes]
    rows = [row for sequences, prefix in cases for row in compare(sequences, prefix, arguments.step, arguments.repeats)]
    print(f"{arguments.repeats} turns: median (least-most) of process CPU time\n")
    print(table(rows))
    record("prm", rows, vars(arguments))


if __name__ == "__main__":
    main()
