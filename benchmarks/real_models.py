"""Accuracy of a published language model on real problems: pass@1, votes, best-of-N and filters at N = 4, 8 and 16.

Majority and best-of-N at every N vote on one pool of completions, the first N of the largest, which is drawn once and scored by every
reward; the AUROC says how often a right completion of a problem scores above a wrong one. A verifier as an oracle needs no run: its best
of N is right where any of N is, which is pass@N. Filters are an evaluation of their
own for each reward (`ppl_llm.evaluation`); the same command continues an interrupted run. The rewards are those of `--reward` of the
command line, and `hidden`, a head trained here on the completions of other problems of the task, `--train` of them.

    python benchmarks/real_models.py MODEL --gym chain_sum --out runs/sums
    python benchmarks/real_models.py MODEL --data math100.jsonl --out runs/math
    python benchmarks/real_models.py MODEL --gym chain_sum --out runs/small --limit 2 --budgets 2,4 --rewards confidence

MODEL is a directory, such as that of Qwen2.5-Coder-0.5B-Instruct. `--tables` prints what there is without running. Prints the tables of
docs/real_models.md, and appends them to results/real_models.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import record, table
from numpy.typing import NDArray

from ppl_llm.cli.model_options import CLOSED_BOX
from ppl_llm.evaluation.intervals import bootstrap, mean_over_problems, proportion
from ppl_llm.evaluation.metrics import auroc
from ppl_llm.evaluation.records import CONFIGURATION
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.run import Progress, evaluate
from ppl_llm.evaluation.source import Models
from ppl_llm.evaluation.trained_reward import Solution, fit_reward, written
from ppl_llm.evaluation.work import SHARED
from ppl_llm.methods import get_method
from ppl_llm.reward.base import step_scores
from ppl_llm.tasks import Problem
from ppl_llm.tasks.load import open_task

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of the language model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gym", help="a task of reasoning-gym, such as gsm_symbolic or chain_sum")
    source.add_argument("--data", help="a JSONL file with the fields problem and answer")
    parser.add_argument("--out", required=True, type=Path, help="folder of the records")
    parser.add_argument("--limit", type=int, default=40, help="problems")
    parser.add_argument("--budgets", default="4,8,16")
    parser.add_argument("--rewards", default="confidence,judge,hidden", help="see --reward of ppl-llm evaluate; and hidden")
    parser.add_argument("--methods", default="self-consistency,best-of-n,smc,power-smc", help="see ppl-llm methods")
    parser.add_argument("--train", type=int, default=40, help="problems whose completions train the head of hidden")
    parser.add_argument("--stop", default="markdown")
    parser.add_argument("--max-tokens-completion", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", help="by default the CPU")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--group-size", type=int, default=4, help="problems that share a batch")
    parser.add_argument("--tables", action="store_true", help="print what there is, and run nothing")
    return parser.parse_args()


def models_of(options: argparse.Namespace, reward: str) -> Models:
    """What a reward's runs share."""
    return Models(
        options.model,
        reward=reward,
        preset="twisted" if reward.startswith("hidden:") else "exact",
        temperature=options.temperature,
        dtype=options.dtype,
        device=options.device,
        equivalence="math",
        max_tokens_completion=options.max_tokens_completion,
        stop=(options.stop.replace("\\n", "\n"),),
        finish=CLOSED_BOX,
        system_prompt=None if options.gym else SYSTEM_PROMPT,
        keep_texts=True,
    )


def run(
    options: argparse.Namespace, problems: Sequence[Problem], name: str, reward: str, methods: Sequence[str], budgets: Sequence[int]
) -> Results | None:
    """An evaluation in a folder of its own, or what there is of it, if anything."""
    folder, began = options.out / name, time.perf_counter()

    def said(progress: Progress) -> None:
        print(
            f"{name}: {progress.skipped + progress.done} of {progress.total} batches, {time.perf_counter() - began:.0f} s", file=sys.stderr
        )

    if not options.tables:
        models = models_of(options, reward)
        evaluate(problems, models, folder, methods=methods, budgets=budgets, group_size=options.group_size, report=said)
    return Results.read(folder) if (folder / CONFIGURATION).exists() else None


def head(options: argparse.Namespace, problems: Sequence[Problem]) -> str:
    """A head on the language model's hidden states, trained on completions of these problems, in the form of ``--reward``."""
    file = options.out / "head.safetensors"
    if not file.exists() and not options.tables:
        models = models_of(options, "confidence")
        lm = models.load().lm
        solutions = run(options, problems, "train", "confidence", [SHARED], [8])
        assert solutions is not None
        found = fit_reward(solutions, lm)
        found.reward.save(file, options.model, {"problems": len(problems), **found.about})
        print(f"hidden: {found.about}", file=sys.stderr)
    return f"hidden:{file}"


@torch.no_grad()
def rescored(options: argparse.Namespace, name: str, reward: str) -> Results | None:
    """The independent samples of the pool with the scores of another reward, each text judged once; scores are kept in a file."""
    results, file = Results.read(options.out / "pool"), options.out / f"scores-{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(line["problem"], line["seed"]): line["scores"] for line in lines}
    missing = [key for key in results.samples if key not in known]
    if missing and options.tables:
        return None
    model = models_of(options, reward).load() if missing else None
    for done, (problem, seed) in enumerate(missing, start=1):
        assert model is not None and model.prm is not None
        pool = results.samples[problem, seed]
        question = next(r["text"] for r in results.by_key[SHARED, len(pool)].values() if r["problem"] == problem)
        texts = [[Solution(problem, question, candidate.text or "", candidate.finished, False) for candidate in pool]]
        context = written(model.lm, texts, model.options.stop, model.options.max_tokens, CLOSED_BOX)
        known[problem, seed] = step_scores(model.prm, context, True).clamp(-1e9, 1e9)[:, 0].tolist()
        with file.open("a") as out:
            out.write(json.dumps({"problem": problem, "seed": seed, "scores": known[problem, seed]}) + "\n")
        print(f"scores of {name}: {done} of {len(missing)} problems", file=sys.stderr)
    for key, pool in list(results.samples.items()):
        results.samples[key] = [replace(c, step_log_odds=tuple(row)) for c, row in zip(pool, known[key], strict=True)]
    return results


def seconds(results: Results, method: str, budget: int) -> float:
    """Mean per problem."""
    return mean_over_problems(results.table(method, budget, lambda entry: float(entry["seconds"])))


def within_problems(results: Results) -> NDArray[np.float64]:
    """Of each problem, how often a right completion has a higher score than a wrong one; nan where all are right, or none is."""
    return results.over_samples(lambda problem, pool: auroc([c.step_log_odds[-1] for c in pool], results.right(problem, pool)))


def pool_rows(results: Results | None, reward: str, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Votes on the independent samples by a reward, or without one."""
    if results is None:
        return []
    if reward:
        vote = "best-of-n, last"
        cells = {f"N = {b}": str(proportion(results.offline(vote, b))) for b in budgets}
        return [{"method": "best-of-n", "reward": reward, **cells, "AUROC": str(bootstrap(within_problems(results), bounds=(0.0, 1.0)))}]
    cost = {"tokens": f"{results.mean_cost(SHARED, budgets[-1]):.0f}", "seconds": f"{seconds(results, SHARED, budgets[-1]):.1f}"}
    return [
        {"method": "pass@1", f"N = {budgets[-1]}": str(proportion(results.pass_at(1)))},
        {"method": "best-of-n", "reward": "oracle", **{f"N = {b}": str(proportion(results.pass_at(b))) for b in budgets}},
        {"method": "majority", **{f"N = {b}": str(proportion(results.offline("majority", b))) for b in budgets}, **cost},
    ]


def filter_rows(results: Results | None, reward: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of each method by budget, and what the largest budget costs a problem."""
    if results is None:
        return []
    rows: list[dict[str, Any]] = []
    for method in methods:
        own = results.budgets(method)
        if own:
            cells = {f"N = {b}": f"{results.accuracy(method, b)} {results.evaluated((method, b))}".strip() for b in own}
            cost = {"tokens": f"{results.mean_cost(method, own[-1]):.0f}", "seconds": f"{seconds(results, method, own[-1]):.1f}"}
            rows.append({"method": method, "reward": reward, **cells, **cost})
    return rows


def main() -> None:
    options = arguments()
    transformers.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    every = list(open_task(f"reasoning-gym:{options.gym}" if options.gym else options.data).problems(options.limit + options.train))
    problems, others = every[: options.limit], every[options.limit :]
    budgets = [int(text) for text in options.budgets.split(",")]
    known = {name: get_method(name) for name in options.methods.split(",")}
    votes = [name for name, each in known.items() if each.shared]
    alone = [n for n, each in known.items() if not each.shared and not each.method.needs_reward(each.model_options.get("power"))]
    scored = [name for name in known if name not in (*votes, *alone)]
    pool = run(options, problems, "pool", "confidence", [SHARED, *votes], budgets) if votes else None
    rows = pool_rows(pool, "", budgets)
    for reward in options.rewards.split(","):
        name = head(options, others) if reward == "hidden" else reward
        folder = reward.replace(":", "-").replace("/", "-")
        if pool is not None:
            rows += pool_rows(pool if reward == "confidence" else rescored(options, folder, name), reward, budgets)
        if scored:
            rows += filter_rows(run(options, problems, folder, name, scored, budgets), reward, scored)
    if alone:
        rows += filter_rows(run(options, problems, "none", "none", alone, budgets), "", alone)
    columns = ("method", "reward", *(f"N = {b}" for b in budgets), "AUROC", "tokens", "seconds")
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("out", "tables", "model", "data")}
    named = {"model": Path(options.model).name, "problems": options.gym or Path(options.data).name, "number": len(problems)}
    print(
        f"\n{named['problems']}, {len(problems)} problems, {named['model']}; tokens and seconds a problem at the largest N\n\n{table(rows)}"
    )
    if not options.tables:
        record("real_models", rows, settings | named | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
