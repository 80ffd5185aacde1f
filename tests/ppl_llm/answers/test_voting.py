"""Extraction and votes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import argmax, extract_answer, majority, weighted_majority

exactly = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The final answer is $\boxed{25}$.", "25"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \mid x>0 \right\}}", r"\left\{ x \mid x>0 \right\}"),
        (r"\boxed{a_{b_{c}}} rest", "a_{b_{c}}"),
        (r"$\boxed {7}$", "7"),
        (r"\boxed 7$ is it", "7"),
        (r"\boxed{ $x = 3$. }", "x = 3"),
        (r"\boxed{4} but \boxed{unclosed", "4"),
        (r"\boxed{}", ""),
        ("no box at all", None),
        (r"\boxed", None),
    ],
)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


balanced = st.recursive(
    st.text(alphabet="abc01 +", max_size=4), lambda inner: st.tuples(inner, inner).map(lambda p: f"{p[0]}{{{p[1]}}}"), max_leaves=6
)


@exactly
@given(content=balanced, before=st.text(alphabet="xy{} ", max_size=6))
def test_nested_braces_round_trip(content: str, before: str) -> None:
    assert extract_answer(before + r"\boxed{" + content + "}") == content.strip()


answers = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8)


@exactly
@given(given_answers=answers, data=st.data())
def test_votes(given_answers: list[str | None], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 5), min_size=len(given_answers), max_size=len(given_answers)))
    totals: dict[str, int] = {}
    for answer, weight in zip(given_answers, weights, strict=True):
        if answer is not None and weight:
            totals[answer] = totals.get(answer, 0) + weight
    vote = weighted_majority(given_answers, [float(w) for w in weights])
    assert (vote is None and not totals) or totals[vote] == max(totals.values())  # type: ignore[index]
    known = [a for a in given_answers if a is not None]
    assert (majority(given_answers) is None and not known) or known.count(majority(given_answers)) == max(map(known.count, known))


def test_ties_go_to_the_first_and_lanes_without_answer_have_no_vote() -> None:
    assert majority([None, "2", "1", "1", "2"]) == "2"
    assert weighted_majority([None, "2", "1"], [0.9, 0.05, 0.05]) == "2"
    assert weighted_majority([None], [1.0]) is None
    assert argmax([None, "2", "1"], [9.0, 1.0, 1.0]) == "2"
    assert argmax(["1", "2"], [-float("inf"), -2.0]) == "2"
    assert argmax([None], [1.0]) is None
