"""Accuracy of the ways to use N samples, on held-out demo problems.

One importance-sampling run per problem gives pass@1, self-consistency, best-of-N and weighted best-of-N, which are votes over the same
samples; SMC runs again for each preset and reward model. Intervals are 95 % bootstrap intervals over problems, resampled within levels;
differences are paired. Prints the tables of docs/targets.md and writes them with all settings as JSON.

    python benchmarks/accuracy.py            # about ten minutes on two cores
    python benchmarks/accuracy.py --quick    # a few problems, to see that it works
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import transformers

from ppl_llm import PRESETS, SMC, Context, Importance, StopReason, argmax, majority, reasoning, weighted_majority
from ppl_llm.demo import Problem, held_out
from ppl_llm.distributions import prefix_log_odds
from ppl_llm.lm.base import LanguageModel
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.base import RewardModel
from ppl_llm.reward.prm.transformers_prm import TransformersPRM

PRMS = {"strong": "demo", "weak": "demo-weak"}
AGGREGATIONS = ("prod", "min", "last")
BATCH = 10
"""Problems of one level that share a batch."""
LIMITS: dict[str, Any] = {"max_steps": 16, "max_tokens": 64}
"""Twice what the longest right solution and its longest step need."""
BOOTSTRAP = 10_000
BOOTSTRAP_SEED = 12345


def batches(problems: Sequence[Problem]) -> list[list[int]]:
    """Indices of problems, grouped by level into batches."""
    by_level: dict[int, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        by_level[problem.level].append(index)
    return [indices[i : i + BATCH] for indices in by_level.values() for i in range(0, len(indices), BATCH)]


class Study:
    """Runs every method on every problem.

    :ivar dict right: per method and problem, how often it was right (for pass@1: the share of right samples), summed over seeds.
    :ivar dict tokens: tokens sampled per method.
    """

    def __init__(self, problems: Sequence[Problem], particles: int, presets: Sequence[str]) -> None:
        self.problems, self.particles, self.presets = problems, particles, presets
        self.lm: LanguageModel = TransformersLM.from_pretrained("demo")
        self.prms: dict[str, RewardModel] = {name: TransformersPRM.from_pretrained(source) for name, source in PRMS.items()}
        self.right: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(problems)))
        self.tokens: dict[str, int] = defaultdict(int)

    def run(self, seed: int) -> None:
        """Once over all problems."""
        start = time.perf_counter()
        for number, where in enumerate(batches(self.problems)):
            self.independent(where, 1000 * seed + number)
            for name in self.prms:
                for preset in self.presets:
                    self.filtered(name, preset, where, 1000 * seed + number)
            level = self.problems[where[0]].level
            print(f"seed {seed}, level {level}, batch {number + 1}: {time.perf_counter() - start:.0f} s", file=sys.stderr)

    def independent(self, where: list[int], seed: int) -> None:
        """What votes over independent samples: the same samples for both reward models."""
        texts, gold = [self.problems[index].text for index in where], [self.problems[index].answer for index in where]
        pyro.set_rng_seed(seed)
        model = reasoning(self.lm, next(iter(self.prms.values())), **LIMITS)
        posterior = Importance(model, self.particles, max_plate_nesting=1).run(texts)
        context: Context = posterior.value
        self.tokens["independent samples"] += int(posterior.cost["tokens_sampled"])
        samples = list(zip(*context.answers(), strict=True))  # per problem
        self.right["pass@1"][where] += [np.mean([answer == g for answer in given]) for given, g in zip(samples, gold, strict=True)]
        self.right["self-consistency"][where] += [majority(given) == g for given, g in zip(samples, gold, strict=True)]
        real = context.reasons != StopReason.FINISHED
        for name, prm in self.prms.items():
            log_odds = prm.step_log_odds(context)
            for aggregation in AGGREGATIONS:
                score = prefix_log_odds(log_odds, real, aggregation).cpu()
                weight = torch.nn.functional.logsigmoid(score).double().softmax(0)
                best = [argmax(given, score[:, p].tolist()) == gold[p] for p, given in enumerate(samples)]
                weighted = [weighted_majority(given, weight[:, p].tolist()) == gold[p] for p, given in enumerate(samples)]
                self.right[f"{name}/best-of-N, {aggregation}"][where] += best
                self.right[f"{name}/weighted best-of-N, {aggregation}"][where] += weighted

    def filtered(self, name: str, preset: str, where: list[int], seed: int) -> None:
        """SMC with one reward model and preset; the same seed as the independent samples, which pairs the first step."""
        pyro.set_rng_seed(seed)
        model = reasoning(self.lm, self.prms[name], preset, **LIMITS)
        posterior = SMC(model, self.particles, max_plate_nesting=1, **model.preset.smc).run([self.problems[index].text for index in where])
        chosen = zip(model.choose(posterior), where, strict=True)
        self.right[f"{name}/SMC {preset}"][where] += [answer == self.problems[index].answer for answer, index in chosen]
        self.tokens[f"{name}/SMC {preset}"] += int(posterior.cost["tokens_sampled"])


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def difference(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Bootstrap:
    """The same resamples of the problems for every method: differences are paired.

    :param numpy.ndarray levels: of the problems; each level is resampled by itself, as the study fixes how many there are of each.
    """

    def __init__(self, levels: np.ndarray, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.groups: dict[str, np.ndarray] = {}
        for level in np.unique(levels):
            members = np.flatnonzero(levels == level)
            self.groups[str(level)] = members[rng.integers(len(members), size=(BOOTSTRAP, len(members)))]
        self.members = {name: np.unique(draws) for name, draws in self.groups.items()}
        self.groups["all"] = np.concatenate(list(self.groups.values()), 1)
        self.members["all"] = np.arange(len(levels))

    def __call__(self, values: np.ndarray) -> dict[str, Estimate]:
        """Per level and over ``all``."""
        estimates = {}
        for name, draws in self.groups.items():
            low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
            estimates[name] = Estimate(float(values[self.members[name]].mean()), float(low), float(high))
        return estimates


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(estimates: dict[str, dict[str, Estimate]], gains: dict[str, dict[str, Estimate]], levels: list[str], n: int) -> str:
    """Accuracy per reward model, then the differences."""
    parts = []
    for name in PRMS:
        mine = [method for method in estimates if "/" not in method or method.startswith(f"{name}/")]
        rows = [
            [
                method.removeprefix(f"{name}/").replace("-of-N", f"-of-{n}"),
                str(estimates[method]["all"]),
                *(f"{estimates[method][level].mean:.2f}" for level in levels),
            ]
            for method in mine
        ]
        parts.append(f"**{name.capitalize()} PRM**\n\n" + table(["", "all levels", *(f"level {level}" for level in levels)], rows))
    columns = ["all", *levels]
    rows = [[f"{method.replace('/', ' PRM, ')}", *(gain[column].difference for column in columns)] for method, gain in gains.items()]
    title = f"**Difference to weighted best-of-{n} (product of step scores), paired**\n\n"
    parts.append(title + table(["", "all levels", *(f"level {level}" for level in levels)], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the problems and the first runs")
    parser.add_argument("--seeds", type=int, default=1, help="runs per problem and method, averaged before the bootstrap")
    parser.add_argument("--presets", type=lambda text: text.split(","), default=list(PRESETS), help="of SMC, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json")
    parser.add_argument("--quick", action="store_true", help="12 problems, preset exact, nothing written unless --out is given")
    args = parser.parse_args()
    if args.quick:
        args.problems, args.presets = 12, ["exact"]
    transformers.utils.logging.disable_progress_bar()
    problems = held_out(args.problems, args.seed)
    start = time.perf_counter()
    study = Study(problems, args.particles, args.presets)
    for seed in range(args.seed, args.seed + args.seeds):
        study.run(seed)
    seconds = time.perf_counter() - start
    levels = np.array([problem.level for problem in problems])
    bootstrap = Bootstrap(levels, seed=BOOTSTRAP_SEED)
    values = {method: total / args.seeds for method, total in study.right.items()}
    estimates = {method: bootstrap(each) for method, each in values.items()}
    gains = {
        f"{name}/SMC {preset}": bootstrap(values[f"{name}/SMC {preset}"] - values[f"{name}/weighted best-of-N, prod"])
        for name in PRMS
        for preset in args.presets
    }
    names = [str(level) for level in np.unique(levels)]
    print(tables(estimates, gains, names, args.particles))
    tokens = {method: total / (len(problems) * args.seeds) for method, total in study.tokens.items()}
    print("\nTokens per problem: " + ", ".join(f"{method} {count:.0f}" for method, count in tokens.items()))
    if args.quick and args.out == parser.get_default("out"):
        return
    settings = {
        **{name: getattr(args, name) for name in ("problems", "particles", "seed", "seeds", "presets")},
        **LIMITS,
        "problems_per_level": {name: int((levels == int(name)).sum()) for name in names},
        "bootstrap": BOOTSTRAP,
        "prms": PRMS,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "pyro": pyro.__version__},
    }
    result = {
        "settings": settings,
        "accuracy": {method: {group: vars(each) for group, each in groups.items()} for method, groups in estimates.items()},
        "smc_minus_weighted_best_of_n": {method: {group: vars(each) for group, each in groups.items()} for method, groups in gains.items()},
        "tokens_per_problem": tokens,
        "seconds": round(seconds, 1),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
