"""Power targets on the demo language model, without any reward: accuracy of alpha = 1, 2, 4 with and without moves, at equal tokens.

Filters for p(solution)^alpha whose steps are drawn at temperature 1 / alpha (the method ``power-smc``), with and without a move of each
unfinished solution after each step, and the block Metropolis (``power-mh``). Every filter gets as many particles as make it sample the
tokens of ``--particles`` solutions drawn independently, which is what alpha = 1 without moves is: a majority vote; a pilot on the first
problems finds the number. The answer is the one of the largest weight. ``python benchmarks/power.py``; ``--quick`` for a small case.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pyro
from common import record, single_thread, table

from ppl_llm import TransformersLM, reasoning
from ppl_llm.answers.equivalence import equivalence_named
from ppl_llm.demo.problems import Problem, held_out
from ppl_llm.evaluation.intervals import proportion
from ppl_llm.methods import Call, parse_method
from ppl_llm.programs.models import ReasoningModel

GROUP = 20
CASES = {
    "alpha 1": "power-smc:power=1",
    "alpha 2": "power-smc:power=2",
    "alpha 4": "power-smc:power=4",
    "alpha 4, bridge of 3 steps": "power-smc:power=4:bridge=3",
    "alpha 1, moves": "power-smc:power=1:moves=1",
    "alpha 2, moves": "power-smc:power=2:moves=1",
    "alpha 4, moves": "power-smc:power=4:moves=1",
    "alpha 4, block Metropolis": "power-mh:power=4",
}


def run(name: str, model: ReasoningModel, problems: Sequence[Problem], size: int, seed: int) -> tuple[list[bool], list[float], float]:
    """Whether each answer is right, the weight of the right answer, and tokens sampled for a problem.

    :param int size: particles, or iterations of a chain of which a quarter is warm-up.
    """
    chosen = parse_method(name)
    adapted = chosen.adapted(model)
    options = dict(chosen.options)
    options |= {"iterations": size - size // 4, "warmup": size // 4} if chosen.method.name == "power-mh" else {"particles": size}
    equivalent, hits, shares, tokens = equivalence_named("exact"), [], [], 0.0
    for begin in range(0, len(problems), GROUP):
        group = problems[begin : begin + GROUP]
        pyro.set_rng_seed(1000 * seed + begin)
        posterior = chosen.method.start(adapted, options, Call(max_plate_nesting=1))([problem.text for problem in group])
        answers = adapted.choose(posterior, equivalent)
        hits += [answer == problem.answer for answer, problem in zip(answers, group, strict=True)]
        given, weights = posterior.value.answers(), posterior.weights
        for p, problem in enumerate(group):
            shares.append(sum(float(weights[n, p]) for n in range(len(given)) if given[n][p] == problem.answer))
        tokens += posterior.cost["tokens_sampled"]
    return hits, shares, tokens / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    single_thread()
    problems = held_out(GROUP if options.quick else options.problems, seed=1)
    model = reasoning(TransformersLM.from_pretrained("demo"), max_steps=12, max_tokens=32)
    rows: list[dict[str, Any]] = []
    budget = 0.0
    for case, name in CASES.items():
        size = options.particles
        if budget:
            size = max(2, round(size * budget / run(name, model, problems[:GROUP], size, options.seed + 1)[2]))
        hits, shares, tokens = run(name, model, problems, size, options.seed)
        budget = budget or tokens
        interval = proportion(hits)
        rows.append(
            {
                "target": case,
                "size": size,
                "tokens a problem": round(tokens),
                "accuracy": str(interval),
                "weight of the right answer": f"{sum(shares) / len(shares):.3f}",
            }
        )
        print(table(rows[-1:]), flush=True)
    print(table(rows))
    if not options.quick:
        record("power", rows, {"problems": len(problems), "particles": options.particles, "seed": options.seed})


if __name__ == "__main__":
    main()
