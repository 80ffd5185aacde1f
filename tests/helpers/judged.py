"""Judges on small tables whose chains of thought are given, with every draw enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_llm import Context, Enumeration, JudgeReward, LLMStep, StepReward, TabularLM, barrier

Asked = Callable[[Context, int], list[tuple[str, str] | None]]
"""For each particle the question and the answer of a step, ``None`` where it is not judged."""

SYMBOLS = ["a", "b", "$"]
_generator = torch.Generator().manual_seed(3)
_table = 1.3 * torch.randn(3, 3, generator=_generator, dtype=torch.float64)
_table[0, 2] = -torch.inf
LM = TabularLM(_table, SYMBOLS, eos="$")
"""Ends its text after a b only."""
JUDGE = TabularLM(1.8 * torch.randn(3, 3, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
_talks = JUDGE.logits.clone()
_talks[:, 2] = -torch.inf
TALKS = TabularLM(_talks, SYMBOLS, eos="$")
"""The same judge, whose chains are never empty."""
CHAINS = ["a", "b", ""]
"""The chains of one token; that of the end of the text is empty."""


def ask(problem: str, *parts: str) -> str:
    """What the judge reads: the problem and the parts, with a letter between them."""
    return problem + "b".join(parts)


def meta(problem: str, answer: str, chain: str) -> str:
    return problem + answer + chain


def stated(chain: str) -> float | None:
    """A score of the text: none for the empty chain."""
    return {"a": 0.875, "b": 0.25}.get(chain)


def chance(asked: str, symbol: int, judge: TabularLM = JUDGE) -> float:
    """Of a symbol after a text."""
    return float(judge.logits[SYMBOLS.index(asked[-1])].softmax(-1)[symbol])


def yes(asked: str) -> float:
    """p(yes) of the word after a text; b says yes."""
    return chance(asked, 1) / (chance(asked, 0) + chance(asked, 1))


def verdict(asked: str, answer: str, chains: tuple[str, ...], k_meta: int | None, score: Any) -> float:
    """The mean over the chains that count, in plain Python."""
    values = [score(c) if score is not None else yes(asked + c) for c in chains]
    ranked = sorted((n for n in range(len(chains)) if values[n] is not None), key=lambda n: -yes(meta("a", answer, chains[n])))
    kept = [values[n] for n in ranked[:k_meta]]
    return sum(kept) / len(kept) if kept else yes(asked)


class Scripted:
    """Part of a judge whose chains are given by a table: from what it is asked to K texts."""

    script: dict[str, tuple[str, ...]]

    def _chains(self, questions: list[Any], number: int) -> list[list[str]]:
        return [[self.script[question][k] for question in questions] for k in range(number)]


def scripts(judge: TabularLM, questions: list[str], thoughts: int) -> Iterator[tuple[float, dict[str, tuple[str, ...]]]]:
    """Every table with its probability."""
    options = [list(itertools.product(CHAINS, repeat=thoughts)) for _ in questions]
    for chosen in itertools.product(*options):
        mass = 1.0
        for question, chains in zip(questions, chosen, strict=True):
            for chain in chains:
                mass *= chance(question, SYMBOLS.index(chain) if chain else 2, judge)
        if mass:
            yield mass, dict(zip(questions, chosen, strict=True))


def program(steps: int, factor: Callable[[Context, int], None]) -> Callable[[str], Context]:
    def solve(problem: str) -> Context:
        context = LM.start(problem)
        for t in range(steps):
            context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, "\x00", 1)), stop="\x00")
            factor(context, t)
            context = barrier(context)
        return context

    return solve


def scored_by(reward: Any, steps: int) -> Callable[[str], Context]:
    def factor(context: Context, t: int) -> None:
        pyro.sample(f"accept_{t}", StepReward(reward, context, last_step=t + 1 == steps), obs=torch.tensor(1.0))

    return program(steps, factor)


def expected_evidence(kind: type[JudgeReward], lm: TabularLM, steps: int, questions: list[str], thoughts: int, **options: Any) -> float:
    """E[Z]: the sum over all draws of a judge of their probability times the evidence given them."""
    total, judges = 0.0, type(kind.__name__, (Scripted, kind), {})
    for mass, script in scripts(lm, questions, thoughts):
        judge = judges(lm, prompt=ask, meta_prompt=meta if options.get("k_meta") else None, yes="b", no="a", thoughts=thoughts, **options)
        judge.script = script
        total += mass * float(Enumeration(scored_by(judge, steps)).run("a").log_evidence.exp())
    return total


def explicit_evidence(
    lm: TabularLM, steps: int, thoughts: int, asked: Callable[[Context, int], list[tuple[str, str] | None]], **options: Any
) -> float:
    """The evidence of a program with every chain of thought a latent site and the verdict an observed one."""

    def factor(context: Context, t: int) -> None:
        each = asked(context, t)
        judged = torch.tensor([e is not None for e in each]).reshape(context.batch_shape)
        about = lm.start([e[0] if e is not None else "a" for e in each])
        about = about if context.batch_shape else about[0]
        chains = []
        for k in range(thoughts):
            thought = pyro.sample(f"thought_{t}_{k}", LLMStep(about, "\x00", 1).mask(judged))
            chains.append(about.extend(thought, stop="\x00").text)
        columns = [c if isinstance(c, list) else [c] for c in chains]
        size = max(len(each), *map(len, columns))
        spread = [c * (size // len(c)) for c in columns]
        values = []
        for n in range(size):
            question = each[n % len(each)]
            drawn = tuple(c[n] for c in spread)
            values.append(1.0 if question is None else verdict(*question, drawn, options.get("k_meta"), options.get("score")))
        right = torch.tensor(values, dtype=torch.float64).reshape(torch.Size([size]) if context.batch_shape else ())
        pyro.sample(f"yes_{t}", dist.Bernoulli(right).mask(judged), obs=torch.tensor(1.0, dtype=torch.float64))

    return float(Enumeration(program(steps, factor)).run("a").log_evidence.exp())
