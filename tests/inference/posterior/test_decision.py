"""Decisions under a posterior over answers: closed forms on four candidates, and every algorithm's posterior."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_llm import SMC, BestOfN, reasoning
from ppl_llm.inference import Decision, DiscreteMarginal
from ppl_llm.inference.posterior.decision import decide
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM

MARGINAL = DiscreteMarginal([(1, 0.4), (5, 0.25), (6, 0.25), (None, 0.1)])


def distance(action: float, truth: float) -> float:
    return -abs(action - truth)


def test_by_default_the_most_probable_answer():
    assert decide(MARGINAL) == Decision(1, 0.4, 0.4)


def test_a_utility_by_hand():
    """1: -(.25 4 + .25 5) = -2.25; 5: -(.4 4 + .25 1) = -1.85; 6: -(.4 5 + .25 1) = -2.25."""
    chosen = decide(MARGINAL, distance)
    assert chosen.action == 5 and chosen.utility == pytest.approx(-1.85, abs=1e-15)
    other = decide(MARGINAL, distance, actions=[1, 3, 6])  # 3: -(.4 2 + .25 2 + .25 3) = -2.05
    assert other.action == 3 and other.utility == pytest.approx(-2.05, abs=1e-15)


@pytest.mark.parametrize(("abstain", "action"), [(0.3, 1), (0.4, 1), (0.400001, None), (0.9, None)])
def test_abstaining(abstain: float, action: int | None):
    chosen = decide(MARGINAL, abstain=abstain)
    assert (chosen.action, chosen.abstained, chosen.best) == (action, action is None, 0.4)
    assert chosen.utility == (0.4 if action is not None else abstain)


def test_nothing_to_choose_from():
    for marginal in (DiscreteMarginal([]), DiscreteMarginal([(None, 1.0)])):
        assert decide(marginal) == Decision(None, 0.0, 0.0)
        assert decide(marginal, distance, abstain=-1.0) == Decision(None, -1.0, 0.0)


def test_ties_go_to_the_more_probable_action():
    assert decide(MARGINAL, lambda action, truth: 0.0, actions=[6, 7, 1]).action == 1


def test_answers_that_count_as_the_same_are_one():
    pooled = DiscreteMarginal([("2", 0.3), ("2.0", 0.3), ("3", 0.4)]).pooled(lambda a, b: float(a) == float(b))
    assert decide(pooled) == Decision("2", 0.6, 0.6)
    assert decide(pooled, actions=["2.0", "3"]) == Decision("2.0", 0.6, 0.6)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=6),
    st.lists(st.integers(-3, 3), min_size=25, max_size=25),
    st.one_of(st.none(), st.integers(-3, 3)),
)
def test_against_plain_arithmetic(pairs: list[tuple[int, int]], table: list[int], abstain: int | None):
    marginal = DiscreteMarginal(pairs)
    chosen = decide(marginal, lambda a, x: table[5 * a + x], abstain=abstain)
    total = sum(weight for _, weight in pairs)
    worth = {a: sum(weight * table[5 * a + x] for x, weight in pairs) / total for a, _ in pairs}
    assert chosen.best == pytest.approx(max(worth.values()), abs=1e-12)
    if chosen.action is not None:
        assert worth[chosen.action] == pytest.approx(max(worth.values()), abs=1e-12)
    else:
        assert abstain is not None and max(worth.values()) < abstain + 1e-12


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"utility": 3}, TypeError, "utility must be a function"),
        ({"abstain": float("nan")}, ValueError, "abstain must be a finite number"),
        ({"abstain": "0.3"}, ValueError, "abstain must be a finite number"),
        ({"abstain": 2}, ValueError, r"abstain must be a probability in \[0, 1\] where no utility is given, got 2"),
        ({"utility": lambda a, x: "much"}, ValueError, r"utility\(1, 1\) is 'much': it must be a finite number"),
        ({"utility": lambda a, x: float("inf")}, ValueError, r"utility\(1, 1\) is inf"),
    ],
)
def test_what_cannot_be_decided(arguments: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        decide(MARGINAL, **arguments)


def test_a_decision_for_each_problem_of_each_algorithm():
    model = reasoning(LM, PRM, stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS)
    for algorithm in (SMC(model, 16, max_plate_nesting=1), BestOfN(model, 16, max_plate_nesting=1)):
        pyro.set_rng_seed(0)
        posterior = algorithm.run(["a", "b"])
        for decision, answers in zip(posterior.decide(abstain=0.2), posterior.answers(), strict=True):
            best = max((p for value, p in answers.probs.items() if value is not None), default=0.0)
            assert decision.best == best and decision.abstained == (best < 0.2)
