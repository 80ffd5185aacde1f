"""Turns of solutions that think: what is shown of a draft, to the next turn and to critics, against plain Python; and what is refused."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import Aggregate, Confidence, Enumeration, Feedback, TabularLM, multi_temperature, reasoning, revise
from ppl_llm.evaluation.votes import candidates
from ppl_llm.inference import SMC, Importance
from ppl_llm.programs.models import ReasoningModel

SYMBOLS = ["a", "b", "|", "$"]
LM = TabularLM(1.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64), SYMBOLS, eos="$")
PROBS = LM.logits.softmax(-1).tolist()
MOST = 3


def model(**options: Any) -> ReasoningModel:
    return reasoning(LM, None, stop="\x00", max_tokens=MOST, max_steps=MOST, max_tokens_completion=MOST, close="|", **options)


def written(start: str) -> dict[str, float]:
    """p of what each solution says after its thinking, which a bar closes; empty where none came. By the table alone."""
    found: dict[str, float] = defaultdict(float)

    def grow(symbols: str, mass: float) -> None:
        if symbols.endswith("$") or len(symbols) == MOST:
            found[symbols.rstrip("$").partition("|")[2]] += mass
            return
        for symbol, p in zip(SYMBOLS, PROBS[SYMBOLS.index((start + symbols)[-1])], strict=True):
            grow(symbols + symbol, mass * p)

    grow("", 1.0)
    return dict(found)


def prompt(problem: str, draft: str) -> str:
    """The next turn begins with the last letter of what the draft answered."""
    return problem + draft.replace("|", "b")


def listed(made: ReasoningModel) -> Any:
    """The exact posterior, with log-probabilities of steps in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return Enumeration(made).run("a")
    finally:
        torch.set_default_dtype(torch.float32)


def by_hand() -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for draft, mass in written("a").items():
        for text, p in written(prompt("a", draft)).items():
            found[text] += mass * p
    return dict(found)


@pytest.mark.parametrize("feedback", [False, True])
def test_the_next_turn_is_shown_what_a_draft_answered(feedback: bool) -> None:
    seen: set[str] = set()

    def critic(problem: str, draft: str) -> str:
        seen.add(draft)
        return draft

    told = Feedback(critic, tell=lambda problem, draft, message: prompt(problem, message)) if feedback else prompt
    found = listed(revise(model(), 2, told))
    exact, marginal = by_hand(), found.marginal(lambda context: context.solution)
    assert max(abs(marginal.prob(text) - p) for text, p in exact.items()) < 1e-10
    assert sum(exact.values()) == pytest.approx(1.0)
    assert not feedback or seen == set(written("a"))


def test_rejects_drafts_with_their_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_llm.context_text import ContextText

    exact = by_hand()
    monkeypatch.setattr(ContextText, "solution", property(lambda self: self.text))
    found = listed(revise(model(), 2, prompt))
    shares: dict[str, float] = defaultdict(float)
    for text, p in found.marginal(lambda context: context.text).probs.items():
        shares[text.partition("|")[2]] += p
    assert max(abs(shares[text] - p) for text, p in exact.items()) > 0.01


def test_candidates_of_an_aggregation_are_shown_without_their_thinking() -> None:
    seen: list[str] = []

    def combine(problem: str, texts: list[str]) -> str:
        seen.extend(texts)
        return problem

    pyro.set_rng_seed(1)
    Aggregate(model(), 30, subset=2, rounds=2, prompt=combine).run("a")
    assert set(seen) <= set(written("a")) and len(set(seen)) > 2


def test_an_answer_that_the_prompt_has_begun_is_part_of_the_draft() -> None:
    context = reasoning(LM, None, stop="\x00", max_tokens=2)("a")
    begun = replace(context, prefills=("b",))
    assert begun.solution == "b" + context.text and context.solution == context.text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda m: revise(m, 2), "Aggregate takes a model of reasoning"),
        (lambda m: multi_temperature(m, [0.5, 1.0]), "Aggregate takes a model of reasoning"),
        (lambda m: reasoning(LM, None, power=2.0), "Aggregate writes solutions as the language model does, and the model has the power 2"),
    ],
)
def test_aggregate_leaves_nothing_out_in_silence(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aggregate(made(model()), 4, subset=2)


def test_what_ctrl_c_leaves_of_an_aggregation_has_the_cost_of_all_turns() -> None:
    class Stops:
        def __init__(self) -> None:
            self.asked = 0

        def __call__(self, problem: str, texts: list[str]) -> str:
            self.asked += 1
            if self.asked > 4:
                raise KeyboardInterrupt
            return problem

    pyro.set_rng_seed(0)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        Aggregate(reasoning(LM, None, stop="\x00", max_tokens=2), 4, subset=1, rounds=5, prompt=Stops()).run("a")
    partial = interrupted.value.partial_posterior  # type: ignore[attr-defined]
    own = int((partial.value.lengths - partial.value.prompt_lengths).sum())
    assert partial.cost["tokens_sampled"] > own and partial.cost["seconds"] > 0


@pytest.mark.parametrize("kind", ["turns", "temperatures"])
def test_the_probability_of_a_candidate_is_that_of_its_own_steps(kind: str) -> None:
    """Of the last turn: drafts are other texts; and no site of the temperature is one."""
    plain = reasoning(LM, None, stop="\x00", max_tokens=2, max_steps=1)
    made = revise(plain, 2, lambda problem, draft: problem) if kind == "turns" else multi_temperature(plain, [1.0])
    pyro.set_rng_seed(3)
    found = Importance(made, 8, record_log_probs=True, max_plate_nesting=1).run(["a"])
    for candidate, context in zip(candidates(made, found, 0), [found.value[n] for n in range(8)], strict=True):
        tokens = context.tokens[0, 1 : int(context.lengths[0])].tolist()
        by_hand = sum(float(LM.logits[before].log_softmax(-1)[after]) for before, after in zip([0, *tokens], tokens, strict=False))
        assert candidate.log_prob == pytest.approx(by_hand, abs=1e-6)


def test_confidence_is_of_the_last_turn() -> None:
    sure = Confidence("margin")
    pyro.set_rng_seed(3)
    found = SMC(revise(model(confidence=sure), 2, lambda problem, draft: problem), 8).run("a")
    fresh = Confidence("margin").of(found.value)
    assert sure.of(found.value).tolist() == pytest.approx(fresh.tolist(), abs=1e-9)


@pytest.mark.parametrize("told", [None, "", 3])
def test_a_next_turn_without_a_prompt_is_named(told: Any) -> None:
    with pytest.raises(ValueError, match=f"a prompt of the next turn must be a text or chat messages, got {told!r}"):
        SMC(revise(model(), 2, lambda problem, draft: told), 2).run("a")
