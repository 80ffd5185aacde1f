"""The same particle filter on local models and on a server: is the posterior over answers the same, and what does it cost?

Start two servers of the models in this package, for example with vLLM, where DEMO is the folder ``ppl_llm/demo`` of the installation::

    vllm serve DEMO/lm --port 8000 --dtype float32 --max-model-len 1024 --enable-prompt-tokens-details
    vllm serve DEMO/prm --port 8001 --dtype float32 --max-model-len 1024 --runner pooling \\
        --pooler-config '{"tok_pooling_type": "STEP", "step_tag_id": 3}'

    python benchmarks/server.py --lm http://localhost:8000/v1 --prm http://localhost:8001/v1

Each side runs the same filter with seeds of its own. An answer's share of the posterior is averaged over the runs; both averages estimate
the same number, so that their difference over its standard error is nearly normal. With A answers the largest of A such scores exceeds 4
with a probability of less than A * 7e-5 if the two sides agree.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

from ppl_llm import SMC, OpenAILM, RemotePRM, TransformersLM, TransformersPRM, reasoning
from ppl_llm.demo import example

LIMIT = 4.0


@dataclass
class Side:
    """Runs of one filter with one pair of models."""

    model: Any
    particles: int
    shares: list[dict[Any, float]] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)
    cost: Counter[str] = field(default_factory=Counter)

    def run(self, problem: str, runs: int, seed: int) -> None:
        for k in range(runs):
            pyro.set_rng_seed(seed + k)
            posterior = SMC(self.model, self.particles, **self.model.preset.smc).run(problem)
            shares: dict[Any, float] = {}
            for answer, weight in zip(posterior.value.answers(), posterior.weights.tolist(), strict=True):
                shares[answer] = shares.get(answer, 0.0) + weight
            self.shares.append(shares)
            self.evidence.append(float(posterior.log_evidence.exp()))
            self.cost.update(posterior.cost)

    def mean(self, values: list[float]) -> tuple[float, float]:
        """Mean and its variance."""
        column = torch.tensor(values, dtype=torch.float64)
        return float(column.mean()), float(column.var() / len(column))

    def share(self, answer: Any) -> tuple[float, float]:
        return self.mean([shares.get(answer, 0.0) for shares in self.shares])


def score(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Difference of two means over its standard error."""
    spread = math.sqrt(one[1] + other[1])
    return (one[0] - other[0]) / spread if spread else 0.0


def compare(level: int, local: Side, remote: Side) -> float:
    """Prints both sides of a problem.

    :returns: the largest score.
    """
    answers = sorted({a for side in (local, remote) for shares in side.shares for a in shares}, key=lambda a: -local.share(a)[0])
    # A share that is nearly always 0 is not normal: the rest is one class.
    common = [a for a in answers if sum(a in shares for side in (local, remote) for shares in side.shares) >= 10]
    worst = abs(score(local.mean(local.evidence), remote.mean(remote.evidence)))
    print(f"level {level}: evidence {local.mean(local.evidence)[0]:.4f} local, {remote.mean(remote.evidence)[0]:.4f} server")
    for answer in common:
        z = score(local.share(answer), remote.share(answer))
        worst = max(worst, abs(z))
        print(f"  answer {answer!s:>5}: {local.share(answer)[0]:.4f} local, {remote.share(answer)[0]:.4f} server, score {z:+.2f}")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", required=True, help="address of the language model's server")
    parser.add_argument("--prm", help="address of the reward model's server; by default the reward model runs here")
    parser.add_argument("--levels", default="3,4,5")
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--unseeded", action="store_true", help="one request for all sequences, without seeds")
    options = parser.parse_args()
    prm = TransformersPRM.from_pretrained("demo")
    here = TransformersLM.from_pretrained("demo"), prm
    there = OpenAILM(options.lm, seeded=not options.unseeded), RemotePRM(options.prm) if options.prm else prm
    worst, cost = 0.0, Counter[str]()
    for level in map(int, options.levels.split(",")):
        local, remote = (Side(reasoning(*models, max_steps=10, max_tokens=64), options.particles) for models in (here, there))
        local.run(example(level).text, options.runs, seed=1000 * level)
        began = time.perf_counter()
        remote.run(example(level).text, options.runs, seed=1000 * level + 500)
        worst = max(worst, compare(level, local, remote))
        rates = (side.cost["tokens_sampled"] / side.cost["seconds"] for side in (local, remote))
        print("  {:,.0f} tokens/s local, {:,.0f} tokens/s server, {:.1f} s".format(*rates, time.perf_counter() - began), flush=True)
        cost.update(remote.cost)
    asked = cost["tokens_prefilled"] + cost["lm_tokens_cached"]
    hits = f"{cost['lm_tokens_cached'] / asked:.1%}" if cost["lm_tokens_cached"] else "not told"
    print(f"prefix-cache hits: {hits} of {asked:,.0f} prompt tokens")
    print(f"{cost['lm_requests']:,.0f} requests, {cost['tokens_sampled']:,.0f} tokens sampled")
    print(f"largest score {worst:.2f}: the posteriors {'agree' if worst < LIMIT else 'DIFFER'}")
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
