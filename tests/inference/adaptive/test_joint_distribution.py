"""The joint distribution of the number of draws and the answer, over all sequences of three answers, against the definition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest

from ppl_llm.inference import Adaptive, BestOfN, BetaMajority, Importance, Pandora, SameAnswers, SelfConsistency, Share
from tests.helpers.adaptive import (
    PROBS,
    REWARDS,
    Joint,
    Reference,
    Told,
    answer_of,
    best,
    beta_majority,
    drawn,
    enumerated,
    heaviest,
    joint_of,
    majority,
    pandora,
    probability,
    remembering,
    same_answers,
    share,
    weighted_share,
)
from tests.helpers.adaptive_mutants import WRONG_DRAWS

CASES: dict[str, tuple[Any, Any, Reference]] = {
    "BetaMajority": (SelfConsistency, BetaMajority(0.8), Reference(beta_majority(0.8), majority)),
    "BetaMajority in batches of 3": (SelfConsistency, BetaMajority(0.9), Reference(beta_majority(0.9), majority, batch=3)),
    "SameAnswers": (SelfConsistency, SameAnswers(2), Reference(same_answers(2), majority)),
    "SameAnswers across batches of 2": (SelfConsistency, SameAnswers(3), Reference(same_answers(3), majority, batch=2)),
    "Share, doubling": (SelfConsistency, Share(0.75), Reference(share(0.75), majority, batch=2, doubling=True)),
    "Share of weights": (Importance, Share(0.7), Reference(weighted_share(0.7), heaviest, batch=2)),
    "Pandora": (BestOfN, Pandora(0.01), Reference(pandora(0.01), best)),
    "Pandora of weighted samples": (Importance, Pandora(0.03, 2.0), Reference(pandora(0.03, 2.0), heaviest, batch=2)),
    "a function": (SelfConsistency, lambda posterior: len(posterior.votes.counts) == 3, Reference(lambda s: len(set(s)) == 3, majority)),
}
"""The algorithm inside, the rule, and the definition of both."""


def runner(case: str, kind: type[Adaptive], most: int) -> tuple[Callable[[Told], tuple[int, int]], Reference]:
    """From a program to (N, answer)."""
    algorithm, until, reference = CASES[case]
    algorithm, reference = remembering(algorithm), replace(reference, most=most)

    def run(program: Told) -> tuple[int, int]:
        inner = algorithm(program, reference.batch)
        posterior = kind(inner, until, reference.most, doubling=reference.doubling, answer=answer_of).run()
        return posterior.num_drawn, posterior.marginal(answer_of).mode

    return run, reference


def joint(case: str, kind: type[Adaptive] = Adaptive, most: int = 8) -> tuple[Joint, float]:
    """The distribution of a run, and the probability of the sequences on which it differs from the definition."""
    run, reference = runner(case, kind, most)
    found: Joint = Counter()  # type: ignore[assignment]
    wrong = 0.0
    for begin, result in enumerated(run, reference.most):
        found[result] += probability(begin)
        wrong += probability(begin) * (result != reference((*begin, *(0,) * (reference.most - len(begin)))))
    return found, wrong


@pytest.mark.parametrize("case", CASES)
def test_the_joint_distribution_of_number_and_answer(case: str) -> None:
    """Over all 3^8 sequences: those that a run does not tell apart have the same first draws, and it draws no others."""
    found, wrong = joint(case)
    expected = joint_of(CASES[case][2])
    assert wrong == 0.0 and found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-10
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-10)
    numbers = {n for n, _ in found}
    assert len(numbers) > 1 and max(numbers) == 8  # the rule matters, and so does the budget


REJECTS = {
    "last batch": ("BetaMajority", 5),
    "against all": ("BetaMajority", 6),
    "ahead": ("BetaMajority", 5),
    "whole batches": ("BetaMajority in batches of 3", 5),
}
"""Case and budget that tell a wrong engine."""


@pytest.mark.parametrize("name", WRONG_DRAWS)
def test_rejects_wrong_draws(name: str) -> None:
    """In total variation by more than 0.02, or a draw beyond the budget."""
    case, most = REJECTS[name]
    expected = joint_of(replace(CASES[case][2], most=most))
    try:
        found, _ = joint(case, WRONG_DRAWS[name], most)
    except AssertionError as error:
        assert "a draw beyond the budget" in str(error) and name == "whole batches"
        return
    assert sum(abs(found.get(key, 0.0) - expected.get(key, 0.0)) for key in {*found, *expected}) / 2 > 0.02


def test_the_frequencies_of_many_problems() -> None:
    """2000 problems that stop alone, drawn by torch: a z-test of each (N, answer) with a false alarm rate of 1e-6 each, some 20 of them."""
    problems = 2000
    reference = replace(CASES["BetaMajority"][2], batch=2)
    expected = joint_of(reference)
    pyro.set_rng_seed(0)
    adaptive = Adaptive(SelfConsistency(drawn, 2, max_plate_nesting=1), BetaMajority(0.8), 8, answer=answer_of)
    posteriors = adaptive.run([None] * problems)
    found = Counter((p.num_drawn, p.marginal(answer_of).mode) for p in posteriors)
    assert found.keys() <= expected.keys()
    for key, p in expected.items():
        assert abs(found[key] - problems * p) < 4.9 * math.sqrt(problems * p * (1 - p)) + 1  # a half of the continuity correction each way


@pytest.mark.parametrize(("rule", "bias"), [(Pandora(0.02), 0.05), (lambda posterior: False, 0.0)])
def test_the_mean_weight_is_biased(rule: Any, bias: float) -> None:
    """Why the evidence is refused: the expected mean weight is above the evidence, here by 5 % and more; that of a fixed number is not."""
    evidence = sum(p * r for p, r in zip(PROBS, REWARDS, strict=True))
    weights: list[float] = []

    def run(program: Told) -> tuple[int, int]:
        posterior = Adaptive(Importance(program, 1), rule, 6, answer=answer_of).run()
        weights.append(float(posterior.log_weights.exp().mean()))
        with pytest.raises(ValueError, match="adaptive importance sampling gives no evidence: it stops when its rule"):
            _ = posterior.log_evidence
        return posterior.num_drawn, 0

    begins = [begin for begin, _ in enumerated(run, 6)]
    mean = sum(probability(begin) * weight for begin, weight in zip(begins, weights, strict=True))
    assert (mean / evidence - 1 > bias) if bias else mean == pytest.approx(evidence, abs=1e-10)
