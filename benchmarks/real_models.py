"""Accuracy of a published language model on real problems: pass@1, votes, best-of-N and filters at N = 4, 8 and 16.

Each reward is an evaluation of its own (`ppl_llm.evaluation`), so the same command continues an interrupted run. Majority
and best-of-N at every N vote on one pool of completions, the first N of the largest; every reward's pool is drawn with the same seeds.
Methods that ask no reward run once. The rewards are those of `--reward` of the command line, and `oracle`, a verifier that knows the right
answers: what the completions would allow.

    python benchmarks/real_models.py MODEL --gym gsm_symbolic --out runs/gsm
    python benchmarks/real_models.py MODEL --data math100.jsonl --out runs/math
    python benchmarks/real_models.py MODEL --gym gsm_symbolic --out runs/small --limit 2 --budgets 2,4 --rewards confidence

MODEL is a directory, such as that of Qwen2.5-Coder-0.5B-Instruct. `--tables` prints what there is without running. Prints the tables of
docs/real_models.md, and appends them to results/real_models.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from common import record, table

from ppl_llm.cli.model_options import CLOSED_BOX
from ppl_llm.evaluation.intervals import mean_over_problems, proportion
from ppl_llm.evaluation.records import CONFIGURATION
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.run import Progress, evaluate
from ppl_llm.evaluation.source import Models
from ppl_llm.methods import get_method
from ppl_llm.tasks import Problem
from ppl_llm.tasks.load import open_task

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
ORACLE = '''"""Knows the right answers."""
import json
from pathlib import Path

from ppl_llm import MathEquivalence, extract_answer

ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text())
SAME = MathEquivalence()


def right(problem, text):
    answer = extract_answer(text)
    return 0.999 if answer is not None and SAME(answer, ANSWERS[problem]) else 0.001
'''


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of the language model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gym", help="a task of reasoning-gym, such as gsm_symbolic or chain_sum")
    source.add_argument("--data", help="a JSONL file with the fields problem and answer")
    parser.add_argument("--out", required=True, type=Path, help="folder of the records")
    parser.add_argument("--limit", type=int, default=40, help="problems")
    parser.add_argument("--budgets", default="4,8,16")
    parser.add_argument("--rewards", default="confidence,judge,oracle", help="see --reward of ppl-llm evaluate; and oracle")
    parser.add_argument("--methods", default="self-consistency,best-of-n,smc", help="of the registry; see ppl-llm methods")
    parser.add_argument("--stop", default="markdown")
    parser.add_argument("--max-tokens-completion", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", help="by default the CPU")
    parser.add_argument("--group-size", type=int, default=4, help="problems that share a batch")
    parser.add_argument("--tables", action="store_true", help="print what there is, and run nothing")
    return parser.parse_args()


def planned(methods: Sequence[str], rewards: Sequence[str]) -> dict[str, list[str]]:
    """The methods that run under each reward; votes that need none share the pool of the first, and others run without any."""
    known = {name: get_method(name) for name in methods}
    scored = [name for name, each in known.items() if each.method.needs_reward(each.model_options.get("power"))]
    plan = {reward: list(scored) for reward in rewards}
    plan[rewards[0]] = [*(name for name, each in known.items() if each.shared and name not in scored), *scored]
    alone = [name for name, each in known.items() if not each.shared and name not in scored]
    return {reward: own for reward, own in {**plan, "none": alone}.items() if own}


def oracle(folder: Path, problems: Sequence[Problem]) -> str:
    """A verifier that knows the right answers, in the form of ``--reward``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.json").write_text(json.dumps({str(problem.text): str(problem.answer) for problem in problems}))
    (folder / "oracle.py").write_text(ORACLE)
    return f"verifier:{folder / 'oracle.py'}:right"


def seconds(results: Results, method: str, budget: int) -> float:
    """Mean per problem."""
    return mean_over_problems(results.table(method, budget, lambda entry: float(entry["seconds"])))


def rows_of(results: Results, reward: str, methods: Sequence[str], first: bool) -> list[dict[str, Any]]:
    """Accuracy of each method by budget, and what the largest budget costs a problem."""
    rows: list[dict[str, Any]] = []
    budgets = sorted({budget for method in methods for budget in results.budgets(method)})
    if first and results.samples:
        rows += [
            {
                "method": "pass@1",
                "reward": "",
                **{f"N = {b}": str(proportion(results.pass_at(1))) if b == budgets[-1] else "" for b in budgets},
            }
        ]
        rows += [{"method": "pass@N", "reward": "", **{f"N = {b}": str(proportion(results.pass_at(b))) for b in budgets}}]
    for method in methods:
        own = results.budgets(method)
        cells = {f"N = {b}": f"{results.accuracy(method, b)} {results.evaluated((method, b))}".strip() if b in own else "" for b in budgets}
        rows.append({"method": method, "reward": reward if get_method(method).method.needs_reward() else "", **cells})
        if own:
            rows[-1] |= {"tokens": f"{results.mean_cost(method, own[-1]):.0f}", "seconds": f"{seconds(results, method, own[-1]):.1f}"}
    return [{**row, "tokens": row.get("tokens", ""), "seconds": row.get("seconds", "")} for row in rows]


def main() -> None:
    options = arguments()
    transformers.logging.set_verbosity_error()
    problems = list(open_task(f"reasoning-gym:{options.gym}" if options.gym else options.data).problems(options.limit))
    budgets = [int(text) for text in options.budgets.split(",")]
    plan = planned(options.methods.split(","), options.rewards.split(","))
    rows: list[dict[str, Any]] = []
    for number, (reward, methods) in enumerate(plan.items()):
        folder = options.out / reward.replace(":", "-").replace("/", "-")
        models = Models(
            options.model,
            reward=oracle(options.out, problems) if reward == "oracle" else reward,
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
        began = time.perf_counter()

        def said(progress: Progress, reward: str = reward, began: float = began) -> None:
            done = progress.skipped + progress.done
            print(f"{reward}: {done} of {progress.total} batches, {time.perf_counter() - began:.0f} s", file=sys.stderr)

        if not options.tables:
            evaluate(problems, models, folder, methods=methods, budgets=budgets, group_size=options.group_size, report=said)
        if (folder / CONFIGURATION).exists():
            rows += rows_of(Results.read(folder), reward, methods, first=number == 0)
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("out", "tables", "model", "data")}
    named = {"model": Path(options.model).name, "problems": options.gym or Path(options.data).name, "number": len(problems)}
    print(
        f"\n{named['problems']}, {len(problems)} problems, {named['model']}; tokens and seconds a problem at the largest N\n\n{table(rows)}"
    )
    if not options.tables:
        record("real_models", rows, settings | named | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
