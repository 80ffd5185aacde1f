"""A head on the demo language model's own hidden states against the shipped process reward models.

The heads are trained on solutions to validation problems, and everything is measured on held-out ones: how well scores tell right from
wrong, the accuracy of best-of-N and SMC, and what it costs in tokens and forward passes. ``python benchmarks/hidden_reward.py``, about
eight minutes on one core, with ``--quick`` for a small case.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import record, single_thread, table
from torch.nn.functional import logsigmoid

from ppl_llm import HiddenStateReward, Problem, TransformersLM, TransformersPRM
from ppl_llm.demo import held_out
from ppl_llm.evaluation import Models, Results, evaluate, fit_reward
from ppl_llm.evaluation.trained_reward import Examples, measured, solutions, written

LIMITS = {"max_steps": 10, "max_tokens": 40}
PRMS = {"strong PRM": "demo", "weak PRM": "demo-weak"}
POOLINGS = ("end", "mean")
METHODS = ("self-consistency", "best-of-n", "smc")
COUNTERS = ("tokens_sampled", "lm_forwards", "prm_forwards", "prm_tokens")


def problems(number: int, split: str) -> list[Problem]:
    made = held_out(number, split=split)
    return [Problem(f"{split}-{i}", each.text, each.answer, {"level": each.level}) for i, each in enumerate(made)]


def sampled(chosen: list[Problem], samples: int, out: Path) -> Results:
    """Independent samples of the language model, with their texts."""
    models = Models(lm="demo", reward="none", keep_texts=True, **LIMITS)  # type: ignore[arg-type]
    evaluate(chosen, models, out, methods=["self-consistency"], budgets=[samples], group_size=100)
    return Results.read(out)


@torch.no_grad()
def prm_scores(prm: TransformersPRM, lm: TransformersLM, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of each step, and of all steps up to it by the product of what they state, in the order of ``Examples``."""
    by_problem: dict[str, list[Any]] = {}
    for solution in solutions(results):
        by_problem.setdefault(solution.problem, []).append(solution)
    groups, found = list(by_problem.values()), []
    for i in range(0, len(groups), 16):
        context = written(lm, groups[i : i + 16])
        z = prm.step_log_odds(context).double()
        product = logsigmoid(z).cumsum(-1).clamp(max=-1e-12)
        both = torch.stack([z, product - torch.log(-torch.expm1(product))], -1)
        found.append(both[context.ends > context.step_starts])
    last, product = torch.cat(found).unbind(-1)
    return last.numpy(), product.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--train", type=int, default=1000, help="problems to train on, three samples each")
    parser.add_argument("--test", type=int, default=100, help="problems to measure on")
    parser.add_argument("--completions", type=int, default=8)
    options = parser.parse_args()
    single_thread()
    train, test, n = (24, 12, 4) if options.quick else (options.train, options.test, options.completions)
    lm = TransformersLM.from_pretrained("demo")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        seen = sampled(problems(train, "validation"), 3, out / "train")
        tested = sampled(problems(test, "held_out"), 8, out / "test")
        rewards, figures = {}, {}
        for pooling in POOLINGS:
            reward = fit_reward(seen, lm, pooling=pooling).reward
            rewards[f"head, {pooling}"] = f"hidden:{out / pooling}", "twisted"
            reward.save(out / pooling, "demo")
            examples = Examples.of(HiddenStateReward.load(out / pooling, lm), solutions(tested))
            with torch.no_grad():
                figures[f"head, {pooling}"] = measured(reward.head(examples.states).double().numpy(), examples)
        for name, prm in PRMS.items():
            rewards[name] = f"prm:{prm}", "exact"
            last, product = prm_scores(TransformersPRM.from_pretrained(prm), lm, tested)
            figures[f"{name}, last step"], figures[f"{name}, product"] = measured(last, examples), measured(product, examples)
        rows: list[dict[str, Any]] = [{"score": name, **{k: str(v) for k, v in each._asdict().items()}} for name, each in figures.items()]
        print(table(rows))
        runs = []
        for name, (chosen, preset) in rewards.items():
            models = Models(lm="demo", reward=chosen, preset=preset, **LIMITS)  # type: ignore[arg-type]
            evaluate(problems(test, "held_out"), models, out / name, methods=METHODS, budgets=[n], group_size=100)
            results = Results.read(out / name)
            for method in METHODS:
                if method == "self-consistency" and name != "head, end":
                    continue
                costs = {counter: round(results.mean_cost(method, n, counter), 1) for counter in COUNTERS}
                label = "none" if method == "self-consistency" else name
                runs.append({"reward": label, "method": method, "accuracy": str(results.accuracy(method, n)), **costs})
    print(table(runs))
    if not options.quick:
        settings = {"train": train, "test": test, "completions": n}
        record("hidden_reward", rows, {**settings, "table": "scores"})
        record("hidden_reward", runs, {**settings, "table": "runs"})


if __name__ == "__main__":
    main()
