"""Units of work: a fixed group of problems under one method, budget and seed."""

from __future__ import annotations

import copy
import hashlib
import math
import operator
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro

from ..inference import ParticlePosterior, SMCFailed
from ..inference.posterior.equivalence_classes import representatives
from ..methods import BudgetedMethod, get_method
from ..methods.options import CONFIDENCE
from ..programs.models import ReasoningModel
from ..reward.confidence import Confidence
from ..tasks.base import Problem
from .aggregators import Candidate, tally
from .records import Key
from .votes import as_record, candidates, submitted

SHARED = "importance"
"""The method whose records hold the independent samples that other methods vote on."""


@dataclass(frozen=True)
class Unit:
    """Work that is done as a whole and gives the same records whenever it is done.

    :ivar int group: index of the group of problems.
    :ivar tuple methods: several for those that vote on the same samples.
    :ivar tuple budgets: several for those whose small budgets are a prefix of the largest.
    """

    group: int
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seed: int

    @property
    def rng_seed(self) -> int:
        """Follows from what the unit is, so that a repetition draws the same numbers."""
        text = f"{self.group}/{self.methods[0] if len(self.methods) == 1 else SHARED}/{max(self.budgets)}/{self.seed}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())

    def keys(self, problems: Sequence[Problem]) -> list[Key]:
        """Of the records it gives."""
        return [Key(p.id, method, budget, self.seed) for p in problems for method in self.methods for budget in self.budgets]


def groups(problems: Sequence[Problem], size: int) -> list[list[Problem]]:
    """Consecutive problems that share a batch."""
    return [list(problems[i : i + size]) for i in range(0, len(problems), size)]


def plan(num_groups: int, methods: Sequence[str], budgets: Sequence[int], seeds: Iterable[int]) -> Iterator[Unit]:
    """All units, small budgets first, so that curves grow from the left.

    :raises ValueError: for an unknown method, or a budget below the least of a method.
    """
    known = [get_method(name) for name in dict.fromkeys(methods)]
    for method in known:
        small = [budget for budget in budgets if budget < method.least]
        if len(small) == len(budgets):
            raise ValueError(f"method {method.name!r} needs a budget of at least {method.least}, got {', '.join(map(str, budgets))}")
    shared = tuple(method.name for method in known if method.shared)
    for seed in seeds:
        if shared:
            for group in range(num_groups):
                # The samples themselves are kept once, with the method of this name.
                yield Unit(group, (SHARED, *(name for name in shared if name != SHARED)), tuple(sorted(set(budgets))), seed)
        for budget in sorted(set(budgets)):
            for method in known:
                if not method.shared and budget >= method.least:
                    for group in range(num_groups):
                        yield Unit(group, (method.name,), (budget,), seed)


def execute(
    unit: Unit,
    model: ReasoningModel,
    problems: Sequence[Problem],
    aggregation: str = "prod",
    equivalent: Callable[[Hashable, Hashable], bool] = operator.eq,
    answer_scores: bool = False,
    keep_texts: bool = False,
    proposals: Any = None,
) -> list[dict[str, Any]]:
    """The records of a unit.

    :param problems: of its group.
    :param str aggregation: score of a solution from those of its steps, for votes by score.
    :param equivalent: when two answers are the same.
    :param bool answer_scores: of the independent samples, record the reward model's score of each whole solution as well.
    :param bool keep_texts: record the text of the problem and of each candidate.
    :param proposals: of the steps.
    """
    pyro.set_rng_seed(unit.rng_seed)
    # What caches hold decides what is run in one batch, and with it the last bits: a unit must not depend on those before it.
    prompt = getattr(model, "prompt", None)
    if callable(know := getattr(getattr(prompt, "critic", None), "know", None)):
        know({problem.text: problem.critic for problem in problems})
    for network in (model.lm, model.prm, prompt):
        if callable(release := getattr(network, "release_caches", None)):
            release()
    began = time.perf_counter()
    methods = [get_method(name) for name in unit.methods]
    model = methods[0].adapted(model)
    if model.confidence is None and any(method.vote_under("") == "deepconf" for method in methods):
        model = copy.copy(model)  # what is kept of the samples does not change them
        model.confidence = Confidence.parse(CONFIDENCE.default)
    aggregation = methods[0].aggregation(model, aggregation)
    posterior: Any = None
    try:
        posterior = methods[0].start(model, [problem.text for problem in problems], max(unit.budgets), equivalent, proposals)
    except SMCFailed as failure:  # of algorithms that end where all problems are dead: each is recorded as dead
        spent = getattr(getattr(failure, "partial_posterior", None), "cost", {})
        found: list[list[Candidate]] = [[] for _ in problems]
    else:
        scored = answer_scores and SHARED in unit.methods
        found = [candidates(model, posterior, i, scored, problem.checker) for i, problem in enumerate(problems)]
    seconds = time.perf_counter() - began
    pools = [pooled(pool, problem.answer, equivalent) for pool, problem in zip(found, problems, strict=True)]
    tokens = [[candidate.tokens for candidate in pool] for pool in pools]
    records = []
    for i, problem in enumerate(problems):
        for budget in unit.budgets:
            part = pools[i][:budget] if methods[0].shared else pools[i]
            # Of what problems cost together, each one's share is that of its tokens.
            share = time_share = sum(tokens[i][: len(part)]) / max(1, sum(map(sum, tokens)))
            if posterior is None:
                cost, share = spent, 1 / len(problems)
            elif isinstance(posterior, list):
                cost, share = posterior[i].cost, 1.0
            else:
                cost = posterior.cost
            for method in methods:
                record = _record(unit, problem, method, budget, part, model.preset.vote, aggregation)
                record["cost"] = {name: round(value * share, 4) for name, value in cost.items() if not name.endswith("seconds")}
                if thoughts := [c.thinking for c in part if c.thinking is not None]:
                    record["cost"]["thinking_tokens"] = sum(thought.tokens for thought in thoughts)
                record["seconds"] = round(seconds * time_share, 4)
                if isinstance(posterior, list):
                    record |= {name: posterior[i].diagnostics()[of] for name, of in (("drawn", "num_drawn"), ("stopped", "stopped"))}
                elif posterior is not None and not method.shared:
                    record |= _diagnostics(posterior, i)
                if not method.shared or (method.name == SHARED and budget == max(unit.budgets)):
                    several = len({c.temperature for c in part}) > 1
                    record["candidates"] = [as_record(c, keep_texts, several) for c in part]
                    if keep_texts:
                        record["text"] = problem.text
                records.append(record)
    return records


def pooled(pool: list[Candidate], gold: str | None, equivalent: Callable[[Hashable, Hashable], bool]) -> list[Candidate]:
    """Candidates whose answers are written alike where they are the same, and like the gold answer where they are that."""
    if equivalent is operator.eq:
        return pool
    chosen = representatives([candidate.answer for candidate in pool], equivalent)
    written = {r: gold if gold is not None and r is not None and equivalent(gold, r) else r for r in set(chosen.values())}
    return [replace(candidate, answer=written[chosen[candidate.answer]]) for candidate in pool]


def _record(
    unit: Unit, problem: Problem, method: BudgetedMethod, budget: int, part: list[Candidate], preset_vote: str, aggregation: str
) -> dict[str, Any]:
    answers = submitted(method.vote_under(preset_vote), part, aggregation, **method.vote_options)
    answer = answers[0] if answers else None
    posterior = tally(part, lambda candidate: candidate.weight)
    total = sum(candidate.weight for candidate in part)
    return {
        "problem": problem.id,
        "method": method.name,
        "budget": budget,
        "seed": unit.seed,
        "answer": answer,
        "correct": any(map(problem.is_right, answers)),
        **({"submitted": answers} if len(answers) > 1 else {}),
        "gold": problem.answer,
        "level": problem.metadata.get("level"),
        "answers": {str(a): round(mass / (total or 1.0), 6) for a, mass in sorted(posterior.items(), key=lambda item: -item[1])},
        "no_answer": round(sum(c.weight for c in part if c.answer is None) / (total or 1.0), 6),
        **({"dead": True} if total == 0 else {}),  # no candidate satisfies what is observed
        "right_samples": sum(problem.is_right(c.answer) for c in part),
        "num_samples": len(part),
        # What a vote that is recomputed from the records may choose is among these.
        **({"verdicts": problem.verdicts([answer, *(c.answer for c in part)])} if problem.verifier is not None else {}),
    }


def _diagnostics(posterior: ParticlePosterior, problem: int) -> dict[str, Any]:
    try:
        log_evidence = float(posterior.log_evidence[problem])
    except ValueError:  # chains and searches give none
        return {}
    ess = posterior.ess
    trace = [round(value, 3) for value in ess[:, problem].tolist()] if ess.dim() == 2 else []
    return {"log_evidence": log_evidence if math.isfinite(log_evidence) else None, "ess": trace}
