"""Votes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import argmax, majority, weighted_majority

exactly = settings(max_examples=100, deadline=None, derandomize=True)


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


def test_ties_go_to_the_first_and_particles_without_answer_have_no_vote() -> None:
    assert majority([None, "2", "1", "1", "2"]) == "2"
    assert weighted_majority([None, "2", "1"], [0.9, 0.05, 0.05]) == "2"
    assert weighted_majority([None], [1.0]) is None
    assert argmax([None, "2", "1"], [9.0, 1.0, 1.0]) == "2"
    assert argmax(["1", "2"], [-float("inf"), -2.0]) == "2"
    assert argmax([None], [1.0]) is None
