"""Aggregation of candidates: the joint distribution of a small population in plain Python, revision as a special case, wrong rules."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import TransformersLM, reasoning
from ppl_llm.context import Context
from ppl_llm.programs.aggregate import Aggregate, combine
from tests.ppl_llm.programs.test_revision import LIMIT, LM, MODEL, STEPS, prompt, written

FREE = reasoning(LM, None, stop=";", max_tokens=1, max_steps=STEPS)
REPLICAS = 2500


def joined(problem: str, candidates: list[str]) -> str:
    """The order matters, so that a rule that forgets to shuffle is found."""
    return problem + ";".join(candidates)


def joint() -> dict[tuple[str, str], float]:
    """Texts of both places of a population of two after two rounds that show both candidates in random order."""
    table: dict[tuple[str, str], float] = defaultdict(float)
    for (x, p, _), (y, q, _) in itertools.product(written("a"), repeat=2):
        for one, other in itertools.product([(x, y), (y, x)], repeat=2):
            for (u, a, _), (v, b, _) in itertools.product(written(joined("a", list(one))), written(joined("a", list(other)))):
                table[u, v] += p * q * a * b / 4
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-12)
    return table


def worst(table: dict[Any, float], seen: list[Any]) -> float:
    """Largest z-value of the counts; cells that are expected less than five times are pooled."""
    counts: dict[Any, int] = defaultdict(int)
    for value in seen:
        counts[value] += 1
    assert counts.keys() <= table.keys()
    often = {value: p for value, p in table.items() if p * len(seen) >= 5}
    rest = 1 - sum(often.values())
    cells = [(counts[value], p) for value, p in often.items()] + [(len(seen) - sum(counts[value] for value in often), rest)]
    return max(abs(count - len(seen) * p) / (len(seen) * p * (1 - p)) ** 0.5 for count, p in cells if p > 1e-9)


def places(algorithm: Aggregate) -> list[tuple[str, str]]:
    pyro.set_rng_seed(4)
    texts = algorithm.run(["a"] * REPLICAS).value.text
    return list(zip(*texts, strict=True))


def test_the_joint_distribution_of_two_places():
    assert worst(joint(), places(Aggregate(FREE, 2, subset=2, rounds=2, prompt=joined, max_plate_nesting=1))) < LIMIT


class OneSubset(Aggregate):
    """All places see the candidates in the same order."""

    def next_round(self, found: Context) -> Context:
        before, torch.rand = torch.rand, lambda *shape: before(1, *shape[1:]).expand(*shape)
        try:
            return super().next_round(found)
        finally:
            torch.rand = before


class WithReplacement(Aggregate):
    """A candidate may be shown twice."""

    def next_round(self, found: Context) -> Context:
        before = torch.Tensor.argsort
        torch.Tensor.argsort = lambda ranks, dim: (ranks * ranks.shape[dim]).long()
        try:
            return super().next_round(found)
        finally:
            torch.Tensor.argsort = before


def shown(kind: Any) -> float:
    """Deviation of what the two places are shown from independent random orders of both drafts, where these differ."""
    seen: list[list[str]] = []

    def record(problem: str, candidates: list[str]) -> str:
        seen.append(candidates)
        return joined(problem, candidates)

    pyro.set_rng_seed(4)
    kind(FREE, 2, subset=2, rounds=2, prompt=record, max_plate_nesting=1).run(["a"] * REPLICAS)
    first, second = seen[:REPLICAS], seen[REPLICAS:]
    drafts = [sorted({*one, *other}) for one, other in zip(first, second, strict=True)]
    table = {(one, other): 1 / 4 for one in itertools.permutations("xy") for other in itertools.permutations("xy")}
    orders = [
        tuple(tuple("xy"[pair.index(text)] for text in place) for place in places)
        for pair, *places in zip(drafts, first, second, strict=True)
        if len(pair) == 2
    ]
    return worst(table, orders) if set(orders) <= table.keys() else math.inf


def test_each_place_is_shown_a_random_order_of_its_own():
    assert shown(Aggregate) < LIMIT


@pytest.mark.parametrize("wrong", [OneSubset, WithReplacement])
def test_wrong_rules_are_rejected(wrong: Any):
    assert shown(wrong) > 2 * LIMIT


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_candidate_each_is_revision(rounds: int):
    """The distribution of each place, over populations of three; one place of each is tested, as the three are not independent."""
    algorithm = Aggregate(FREE, 3, subset=1, rounds=rounds, prompt=lambda problem, given: prompt(problem, given[0]), max_plate_nesting=1)
    pyro.set_rng_seed(9)
    assert worst(chain_of_drafts(rounds), algorithm.run(["a"] * REPLICAS).value.text[2]) < LIMIT


def chain_of_drafts(rounds: int) -> dict[str, float]:
    """Of the last text of a chain of revisions without a reward."""
    table: dict[str, float] = {}
    starts = {"a": 1.0}
    for _ in range(rounds):
        table = defaultdict(float)
        for start, mass in starts.items():
            for text, p, _ in written(start):
                table[text] += mass * p
        starts = defaultdict(float)
        for text, mass in table.items():
            starts[prompt("a", text)] += mass
    return table


def test_the_reward_weighs_the_last_round_only():
    pyro.set_rng_seed(0)
    posterior = Aggregate(MODEL, 6, subset=2, rounds=3, prompt=joined).run("a")
    assert posterior.scores is None and posterior.num_particles == 6
    assert len(set(posterior.log_weights.tolist())) > 1
    with pytest.raises(ValueError, match="aggregation gives no evidence: its solutions are written from one another"):
        _ = posterior.log_evidence


def test_ctrl_c_leaves_the_last_complete_round():
    def prompt_once(problem: str, given: list[str]) -> str:
        calls.append(given)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return joined(problem, given)

    calls: list[list[str]] = []
    pyro.set_rng_seed(0)
    with pytest.raises(KeyboardInterrupt) as caught:
        Aggregate(FREE, 4, subset=2, rounds=5, prompt=prompt_once).run("a")
    partial = caught.value.partial_posterior
    assert partial.num_particles == 4 and {*calls[4], *calls[5]} <= set(partial.value.text)


def test_the_demo_model_aggregates():
    lm = TransformersLM.from_pretrained("demo")
    problem = "Begin with 12. First: take away 5. Second: increase it by 3. What number do you get?"
    seen: list[list[str]] = []

    def again(asked: str, candidates: list[str]) -> str:
        seen.append(candidates)
        return asked

    pyro.set_rng_seed(1)
    posterior = Aggregate(reasoning(lm, None, max_steps=6, max_tokens=64), 6, subset=3, rounds=2, prompt=again).run(problem)
    assert len(seen) == 6 and all(len(candidates) == 3 for candidates in seen)
    assert posterior.answers().mode == "10" and posterior.value.problem == [problem] * 6


def test_the_default_prompt_numbers_the_candidates():
    text = combine("1 + 1?", ["2 ", "3"])
    assert text.startswith("1 + 1?") and "Candidate 1:\n2\n" in text and "Candidate 2:\n3\n" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_particles": 0}, "num_particles must be an integer of at least 1"),
        ({"subset": 5}, "subset must be at most num_particles = 4, got 5"),
        ({"subset": 0}, "subset must be an integer of at least 1"),
        ({"rounds": 0}, "rounds must be an integer of at least 1"),
        ({"prompt": 3}, "prompt must be a function"),
    ],
)
def test_arguments_that_make_no_sense(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Aggregate(FREE, **({"num_particles": 4, "subset": 2} | changes))
