"""Thinking budgets: the pushed-forward distribution in plain Python, algorithms against it, spellings of the tag, and wrong maps."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import (
    PAD,
    SMC,
    Context,
    Enumeration,
    FunctionReward,
    Importance,
    LLMStep,
    StepProposal,
    StopReason,
    SuffixMH,
    TabularLM,
    TabularReward,
    Thinking,
    TransformersLM,
    reasoning,
)
from ppl_llm.constraints import Regex
from ppl_llm.programs.models import ReasoningModel
from ppl_llm.thinking import answered
from tests.helpers.tiny_models import causal_lm, tokenizer

SYMBOLS = ["a", ";", "|", "w", "$"]
STOP, CLOSE, END = 1, 2, 4
_generator = torch.Generator().manual_seed(3)
LM = TabularLM(0.9 * torch.randn(5, 5, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
PRM = TabularReward(1.5 * torch.randn(5, generator=_generator), bias=-0.2, discount=0.8)
REPLICAS = 1500
LIMIT = 4.9
"""Of a z-value: one right program in a million would be rejected under another seed."""

BUDGETS = [
    {"waits": 1, "wait": "w", "close": "|", "max_thinking": 3},
    {"waits": 2, "wait": "wa", "close": "|"},
    {"close": "|", "max_thinking": 2},
]
MODEL: dict[str, Any] = {"stop": ";", "max_tokens": 2, "max_steps": 3, "max_tokens_completion": 6, "answer_fallback": "text"}


def program(prm: Any = PRM, **options: Any) -> ReasoningModel:
    return reasoning(LM, prm, **{**MODEL, **options})


def pushed(lm: TabularLM, budget: dict[str, Any], steps: int, max_tokens: int, most: int, rewarded: bool) -> dict[tuple[str, Any], float]:
    """Unnormalised probability of (text, answer), without any code of the library but the two tables."""
    probs, found = lm.logits.softmax(-1), defaultdict[tuple[str, Any], float](float)
    waits, wait, bound = budget.get("waits", 0), [SYMBOLS.index(c) for c in budget.get("wait", "w")], budget.get("max_thinking")

    def score(symbols: list[int]) -> float:
        z = -0.2 + sum(float(PRM.log_odds[v]) * 0.8**age for age, v in enumerate(reversed(symbols)))
        return 1 / (1 + math.exp(-z))

    def end(symbols: list[int], thought: int | None, mass: float) -> None:
        text = "".join(SYMBOLS[v] for v in symbols if v != END)
        answer = None if thought is None else "".join(SYMBOLS[v] for v in symbols[thought:] if v != END).strip() or None
        found[text, answer] += mass

    def draw(symbols: list[int], room: int) -> Any:
        def grow(step: list[int], mass: float) -> Any:
            last = [*symbols, *step][-1] if symbols or step else 0
            for v in range(5):
                grown = [*step, v]
                if v in (STOP, CLOSE, END) or len(grown) == room:
                    yield grown, mass * float(probs[last, v])
                else:
                    yield from grow(grown, mass * float(probs[last, v]))

        yield from grow([], 1.0)

    def take(symbols: list[int], thought: int | None, waited: int, left: int, mass: float) -> None:
        """``thought`` is where the thinking ends."""
        if left == 0:
            return end(symbols, thought, mass)
        inside = thought is None
        limit = min(most, bound) if inside and bound is not None else most
        for step, p in draw(symbols, min(max_tokens, limit - len(symbols))):
            grown, closing, again = [*symbols, *step], thought, waited
            if inside and step[-1] == CLOSE:
                replaced = [*symbols, *step[:-1], *wait]
                if waited < waits and len(replaced) < limit:
                    grown, again = replaced, waited + 1
                elif len(grown) < most:
                    closing = len(grown)
            elif inside and step[-1] != END and len(grown) >= limit and len(grown) + 1 < most:
                grown = [*grown, CLOSE]
                closing = len(grown)
            factor = score(grown) if rewarded else 1.0
            if step[-1] == END or len(grown) >= most:
                end(grown, closing, mass * p * factor)
            else:
                take(grown, closing, again, left - 1, mass * p * factor)

    take([], None, 0, steps, 1.0)
    return dict(found)


def exact(budget: dict[str, Any], rewarded: bool = True, lm: TabularLM = LM) -> tuple[float, dict[tuple[str, Any], float]]:
    table = pushed(lm, budget, 3, 2, 6, rewarded)
    total = sum(table.values())
    return total, {key: mass / total for key, mass in table.items()}


def key(context: Context) -> Any:
    """(text, answer) of each sequence."""
    return list(zip(context.text, context.answers(), strict=True)) if context.batch_shape else (context.text, context.answers())


def error(model: ReasoningModel, budget: dict[str, Any], rewarded: bool, lm: TabularLM = LM) -> float:
    """Largest difference of a probability to the oracle's."""
    torch.set_default_dtype(torch.float64)  # of the log-probabilities of steps
    try:
        found = Enumeration(model).run("a")
    finally:
        torch.set_default_dtype(torch.float32)
    _, table = exact(budget, rewarded, lm)
    marginal = found.marginal(key)
    keys = set(marginal.probs) | set(table)
    return max(abs(marginal.prob(k) - table.get(k, 0.0)) for k in keys)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_distribution_is_the_language_models_pushed_through_the_map(budget: dict[str, Any]) -> None:
    assert error(program(None, **budget), budget, rewarded=False) < 1e-10


@pytest.mark.parametrize("budget", BUDGETS)
def test_with_a_reward_the_evidence_too(budget: dict[str, Any]) -> None:
    """Scores are float32."""
    evidence, _ = exact(budget)
    assert float(Enumeration(program(**budget)).run("a").log_evidence.exp()) == pytest.approx(evidence, rel=1e-6)
    assert error(program(**budget), budget, rewarded=True) < 1e-7


@given(st.integers(0, 2), st.sampled_from(["w", "wa", "a;"]), st.sampled_from([None, 1, 2, 3]), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_any_budget_on_any_table(waits: int, wait: str, bound: int | None, seed: int) -> None:
    lm = TabularLM(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), SYMBOLS, eos="$")
    budget = {"waits": waits, "wait": wait, "close": "|", "max_thinking": bound}
    model = reasoning(lm, None, **{**MODEL, **budget})
    assert error(model, budget, rewarded=False, lm=lm) < 1e-10


def deviation(model: Any, budget: dict[str, Any], algorithm: Any, **kwargs: Any) -> float:
    """Largest z-value of Z-hat and of Z-hat times the weight of each text, over replicas in one plate."""
    evidence, table = exact(budget)
    pyro.set_rng_seed(11)
    posterior = algorithm(model, 3, max_plate_nesting=1, **kwargs).run(["a"] * REPLICAS)
    mass = posterior.log_evidence.exp()
    worst = abs(float((mass.mean() - evidence) / mass.std() * REPLICAS**0.5))
    text, answers = posterior.value.text, posterior.value.answers()
    estimates: dict[Any, Any] = {k: torch.zeros(REPLICAS, dtype=torch.float64) for k in table}
    for n, weights in enumerate(posterior.weights):
        for r, k in enumerate(zip(text[n], answers[n], strict=True)):
            estimates.setdefault(k, torch.zeros(REPLICAS, dtype=torch.float64))[r] += mass[r] * weights[r]
    for k, estimate in estimates.items():
        if table.get(k, 0.0) * evidence > 1e-3 or k not in table:
            p = table.get(k, 0.0)
            worst = max(worst, abs(float((estimate.mean() - evidence * p) / estimate.std().clamp(min=1e-9) * REPLICAS**0.5)))
    return worst


@pytest.mark.parametrize(("algorithm", "options"), [(SMC, {"ess_threshold": 1.0}), (SMC, {"resampler": "residual"}), (Importance, {})])
def test_filters_are_unbiased(algorithm: Any, options: dict[str, Any]) -> None:
    assert deviation(program(**BUDGETS[0]), BUDGETS[0], algorithm, **options) < LIMIT


def test_filters_with_a_proposal_are_unbiased() -> None:
    assert deviation(program(**BUDGETS[0]), BUDGETS[0], SMC, proposals=StepProposal(temperature=1.4)) < LIMIT


def test_the_audit_passes() -> None:
    pyro.set_rng_seed(0)
    report = SMC(program(**BUDGETS[0]), 8, ess_threshold=1.0, audit=True).run("a").audit
    assert report is not None and report.num_sites > 0 and report.error == 0


def test_chains_keep_the_exact_distribution() -> None:
    """25 moves of 1,000 chains from the prior; the last states against the exact ones."""
    _, table = exact(BUDGETS[0])
    pyro.set_rng_seed(2)
    chains = 1000
    posterior = SuffixMH(program(**BUDGETS[0]), max_plate_nesting=1).run(25, ["a"] * chains)
    last = posterior.iterations[-1]
    share: dict[Any, Any] = {k: torch.zeros(chains, dtype=torch.float64) for k in table}
    for weights, texts, answers in zip(last.weights, last.value.text, last.value.answers(), strict=True):
        for r, k in enumerate(zip(texts, answers, strict=True)):
            share[k][r] += weights[r]
    for k, p in table.items():
        if p > 1e-3:
            assert abs(float((share[k].mean() - p) / share[k].std().clamp(min=1e-9) * chains**0.5)) < LIMIT, k


class WaitsForEver(Thinking):
    """The waits of a solution are not counted."""

    def applied(self, base: Context, step: Any, reasons: Any) -> Any:
        forgetful = type("Forgetful", (), {"__getattr__": lambda _, name: base.waits * 0 if name == "waits" else getattr(base, name)})()
        return super().applied(forgetful, step, reasons)


class ClosesLate(Thinking):
    """The bound is one token further on."""

    def limit(self, context: Context) -> Any:
        assert self.max_thinking is not None
        return Thinking(self.close, self.waits, self.wait, self.max_thinking + 1).limit(context)


class WaitsBehindTheTag(Thinking):
    """The tag stays."""

    def _with_wait(self, lm: Any, drawn: list[int]) -> list[int]:
        return [*drawn, *lm.encode(self.wait)]


class WeighsWhatIsWritten(ReasoningModel):
    """The probability of the words that are written in place of those that were drawn."""

    def written(self, ctx: Context, name: str) -> Context:
        after = super().written(ctx, name)
        forced = after.reasons[..., -1] == StopReason.WAIT
        probs = LM.logits.log_softmax(-1)
        last = after.tokens.gather(-1, (after.lengths - 2).clamp(min=0)[..., None])[..., 0]
        pyro.factor(f"{name}_written", torch.where(forced, probs[last, 3] - probs[last, 2], 0.0))
        return after


def broken(mutant: type[Thinking], budget: dict[str, Any]) -> ReasoningModel:
    model = program(None, **budget)
    model.thinking = mutant(budget["close"], budget["waits"], budget["wait"], budget["max_thinking"])
    return model


@pytest.mark.parametrize("mutant", [WaitsForEver, ClosesLate, WaitsBehindTheTag])
def test_wrong_maps_are_rejected(mutant: type[Thinking]) -> None:
    """A right map is off by 1e-10 at most."""
    assert error(broken(mutant, BUDGETS[0]), BUDGETS[0], rewarded=False) > 1e-3


def test_a_wrong_distribution_is_rejected() -> None:
    model = program(**BUDGETS[0])
    wrong = WeighsWhatIsWritten.__new__(WeighsWhatIsWritten)
    vars(wrong).update(vars(model))
    assert deviation(wrong, BUDGETS[0], SMC, ess_threshold=1.0) > 1.5 * LIMIT


def test_rejects_answers_that_are_looked_for_in_the_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.context_text.answered", lambda sequence: sequence.text)
    assert error(program(None, **BUDGETS[0]), BUDGETS[0], rewarded=False) > 1e-3


# The tag in the tokens of a published kind of vocabulary


def taken(lm: Any, text: str, thinking: Thinking, steps: int = 1, width: int = 12, **limits: Any) -> Context:
    """The context after given texts of steps."""
    context = replace(lm.start("What is 12 + 30?"), thinking=thinking, **limits)
    for _ in range(steps):
        ids = lm.encode(text)
        step = torch.tensor([*ids, *[PAD] * (width - len(ids))])
        context = context.extend(step, ("\n\n", thinking.close))
    return context


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return TransformersLM(causal_lm(max_position_embeddings=200), tokenizer(), device_loop=False)


def test_a_tag_of_many_tokens_is_replaced_and_what_stands_before_it_stays(lm: TransformersLM) -> None:
    thinking = Thinking(waits=1)
    assert len(lm.encode(thinking.close)) > 1
    context = taken(lm, "So.</think>", thinking, width=24)
    assert context.text == "So.Wait" and context.reasons.tolist() == [StopReason.WAIT] and bool(context.inside)
    again = context.extend(torch.tensor([*lm.encode(" is 3</think>"), *[PAD] * 4]), ("\n\n", thinking.close))
    assert again.text == "So.Wait is 3</think>" and again.reasons.tolist() == [StopReason.WAIT, StopReason.CLOSE]
    assert int(again.thinking_tokens) == int(again.lengths - again.prompt_lengths) and int(again.waits) == 1
    ended = again.extend(torch.tensor([*lm.encode("the answer is 7."), PAD]), ("\n\n", thinking.close))
    assert answered(ended) == "the answer is 7." and ended.answers() == "7" and again.answers() is None
    assert int(ended.thinking_tokens) == int(again.thinking_tokens)


def test_a_tag_that_is_a_special_token() -> None:
    """It has no text: neither the wait nor the answer takes anything of it along."""
    own = copy.deepcopy(tokenizer())  # which all tests share
    own.add_special_tokens({"additional_special_tokens": ["</think>"]})
    lm = TransformersLM(causal_lm(vocab_size=len(own), max_position_embeddings=200), own, device_loop=False)
    thinking = Thinking(waits=1)
    assert len(lm.encode(thinking.close)) == 1 and lm.decode(lm.encode(thinking.close)) == ""
    context = taken(lm, "So</think>", thinking, steps=2, width=12)
    assert context.text == "SoWaitSo" and context.reasons.tolist() == [StopReason.WAIT, StopReason.CLOSE]
    ended = context.extend(torch.tensor([*lm.encode("the answer is 7."), PAD]), ("\n\n", thinking.close))
    assert answered(ended) == "the answer is 7." and ended.answers() == "7"


def test_a_tag_that_max_tokens_has_cut_in_two_closes_all_the_same() -> None:
    lm = TabularLM(torch.zeros(5, 5, dtype=torch.float64), SYMBOLS, eos="$")
    model = reasoning(lm, None, tokens_per_step=1, max_steps=4, close="aw", answer_fallback="text", early_exit=False)
    found = Enumeration(model).run("a").marginal(key)
    for text, answer in found.probs:
        assert answer == ((text.partition("aw")[2].strip() or None) if "aw" in text else None), text
    with pytest.raises(ValueError, match=r"waits needs steps that hold the whole closing tag, 2 tokens of TabularLM, got 1"):
        reasoning(lm, None, tokens_per_step=1, close="aw", waits=1, wait="w")


def test_a_pattern_finishes_no_thinking_and_a_final_stop_does() -> None:
    model = program(None, close="|", finish="a", final_stop=("w",))
    context = model(["a"])
    step = LLMStep(context, model.options.stop, 2)
    assert step.options.stop == (";", "w", "|")
    start = LM.start("a")
    start = replace(start, thinking=model.thinking, final_stop=("w",))
    thought = start.extend(torch.tensor([0, 1]), model.options.stop, "a")
    assert not bool(thought.done)
    after = thought.extend(torch.tensor([2, PAD]), model.options.stop, "a")
    assert bool(after.extend(torch.tensor([0, 1]), model.options.stop, "a").done)
    assert bool(start.extend(torch.tensor([0, 3]), model.options.stop, "a").done)


def test_verifiers_are_shown_the_answer_only() -> None:
    seen: set[str] = set()
    budget = BUDGETS[0]

    def verify(problem: str, text: str) -> float:
        seen.add(text)
        return 0.5

    Enumeration(program(FunctionReward(verify), **budget)).run("a")
    _, table = exact(budget, rewarded=False)
    answers = {answer or "" for _, answer in table}
    assert "" in seen and {text.strip() for text in seen} <= answers
    assert {text for text, _ in table} - answers  # which it would be shown otherwise


def test_a_run_is_resumed_under_the_same_budget_only(tmp_path: Path) -> None:
    """From its second barrier, bit for bit; under another budget it is refused."""
    model, path = program(**BUDGETS[0]), tmp_path / "state"
    pyro.set_rng_seed(0)
    whole = SMC(model, 8, ess_threshold=1.0).run("a")
    pyro.set_rng_seed(0)
    states = SMC(model, 8, ess_threshold=1.0).iterate("a")
    next(states)
    next(states).save(path)
    pyro.set_rng_seed(1)
    resumed = SMC(program(**BUDGETS[0]), 8, ess_threshold=1.0).resume(path)
    assert key(resumed.value) == key(whole.value) and torch.equal(resumed.log_weights, whole.log_weights)
    with pytest.raises(ValueError, match="waits"):
        SMC(program(**{**BUDGETS[0], "waits": 2}), 8, ess_threshold=1.0).resume(path)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"waits": -1}, "waits must be an integer of at least 0, got -1"),
    ({"max_thinking": 0, "close": "|"}, "max_thinking must be None or an integer of at least 1, got 0"),
    ({"close": ""}, "close must be a non-empty string, got ''"),
    ({"close": "|", "waits": 1, "wait": "a|"}, "wait='a|' has the closing tag '|' in it"),
    ({"waits": 1}, r"close='</think>' cannot be written: TabularLM has only the symbols"),
    ({"waits": 1, "close": "|"}, "wait='Wait' cannot be written: TabularLM has only the symbols"),
    ({"close": "|", "max_thinking": 5}, r"max_thinking must leave room for the closing tag and an answer within the 6 tokens"),
    ({"close": "|", "constraint": Regex("a*")}, "do not go together"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_what_makes_no_sense_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(**options)


def test_a_constraint_that_is_proposed_is_refused() -> None:
    proposal: Callable[..., Any] = StepProposal(constraint=Regex("a*"))
    with pytest.raises(ValueError, match="a constraint and a thinking budget do not go together"):
        SMC(program(close="|"), 2, proposals=proposal).run("a")
