"""Rounds of revision: the chain of drafts enumerated in plain Python, filters and chains against it, and wrong programs."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import (
    SMC,
    Context,
    Enumeration,
    Importance,
    SuffixMH,
    TabularLM,
    TabularReward,
    TransformersLM,
    TransformersPRM,
    multi_temperature,
    reasoning,
)
from ppl_llm.programs.revision import RevisionModel, ask_again, revise

SYMBOLS = ["a", "b", ";", "$"]
STEPS = 2
_generator = torch.Generator().manual_seed(5)
LM = TabularLM(1.2 * torch.randn(4, 4, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
PRM = TabularReward(1.5 * torch.randn(4, generator=_generator), bias=-0.4, discount=0.7)
MODEL = reasoning(LM, PRM, stop=";", max_tokens=1, max_steps=STEPS)
REPLICAS = 1500
LIMIT = 4.9
"""Of a z-value: one right program in a million would be rejected under another seed."""


def prompt(problem: str, draft: str) -> str:
    return problem + draft


@cache
def written(start: str) -> list[tuple[str, float, float]]:
    """(text, p(text), product of the scores) of one round, without any code of the library but the two tables."""
    probs, found = LM.logits.softmax(-1), []

    def score(symbols: list[int]) -> float:
        z = -0.4 + sum(float(PRM.log_odds[v]) * 0.7**age for age, v in enumerate(reversed(symbols)))
        return 1 / (1 + math.exp(-z))

    def grow(symbols: list[int], mass: float, factor: float) -> None:
        last = symbols[-1] if symbols else SYMBOLS.index(start[-1])
        for v in range(4):
            grown, p, g = [*symbols, v], mass * float(probs[last, v]), factor * score([*symbols, v])
            if v == 3 or len(grown) == STEPS:
                found.append(("".join(SYMBOLS[u] for u in grown if u != 3), p, g))
            else:
                grow(grown, p, g)

    grow([], 1.0, 1.0)
    return found


def exact(rounds: int, start: str = "a", rewarded: str = "last") -> tuple[float, dict[str, float]]:
    """Evidence, and the distribution of the last text."""
    table: dict[str, float] = defaultdict(float)

    def walk(prompted: str, left: int, mass: float) -> None:
        for text, p, g in written(prompted):
            if left == 1:
                table[text] += mass * p * g
            else:
                walk(prompt(start, text), left - 1, mass * p * (g if rewarded == "all" else 1.0))

    walk(start, rounds, 1.0)
    total = sum(table.values())
    return total, {text: mass / total for text, mass in table.items()}


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_an_enumerated_markov_chain(rounds: int):
    evidence, table = exact(rounds)
    found = Enumeration(revise(MODEL, rounds, prompt)).run("a")
    assert float(found.log_evidence.exp()) == pytest.approx(evidence, rel=1e-6)  # scores are float32
    marginal = found.marginal(lambda context: context.text)
    assert set(marginal.probs) == set(table)
    assert max(abs(marginal.prob(text) - p) for text, p in table.items()) < 1e-7


def test_one_round_is_the_model():
    found = []
    for model in (MODEL, revise(MODEL, 1, prompt)):
        pyro.set_rng_seed(3)
        found.append(SMC(model, 8).run("a"))
    assert found[0].value.text == found[1].value.text
    assert torch.equal(found[0].log_weights, found[1].log_weights)


class RewardedDrafts(RevisionModel):
    """Drafts are scored as well."""

    def draft(self, ctx: Context, r: int) -> Context:
        draft = super().draft(ctx, r)
        pyro.sample(f"accept_draft_{r}", self._factor(draft, last_step=True), obs=torch.tensor(1.0))
        return draft


class NeighboursDraft(RevisionModel):
    """Each particle revises the draft of the one beside it."""

    def next_round(self, ctx: Context, draft: Context) -> Context:
        return super().next_round(ctx, draft.reorder(torch.arange(draft.batch_shape[0]).roll(1)))


class DraftIsKept(RevisionModel):
    """The next round continues the draft instead of a prompt of its own."""

    def next_round(self, ctx: Context, draft: Context) -> Context:
        return ctx.expand(draft.batch_shape)


def deviation(model: Any, algorithm: Any, **kwargs: Any) -> float:
    """Largest z-value of Z-hat and of Z-hat times the weight of each text, over replicas in one plate."""
    evidence, table = exact(2)
    pyro.set_rng_seed(11)
    posterior = algorithm(model, 3, max_plate_nesting=1, **kwargs).run(["a"] * REPLICAS)
    mass = posterior.log_evidence.exp()
    worst = abs(float((mass.mean() - evidence) / mass.std() * REPLICAS**0.5))
    given = posterior.value.text
    for text, p in table.items():
        share = torch.tensor([[row[r] == text for r in range(REPLICAS)] for row in given])
        estimate = mass * (posterior.weights * share).sum(0)
        worst = max(worst, abs(float((estimate.mean() - evidence * p) / estimate.std().clamp(min=1e-9) * REPLICAS**0.5)))
    return worst


@pytest.mark.parametrize(("algorithm", "options"), [(SMC, {"ess_threshold": 1.0}), (SMC, {"resampler": "residual"}), (Importance, {})])
def test_filters_are_unbiased(algorithm: Any, options: dict[str, Any]):
    assert deviation(revise(MODEL, 2, prompt), algorithm, **options) < LIMIT


@pytest.mark.parametrize("wrong", [RewardedDrafts, DraftIsKept])
def test_wrong_programs_are_rejected(wrong: Any):
    assert deviation(wrong(MODEL, 2, prompt), SMC, ess_threshold=1.0) > 2 * LIMIT


def test_the_audit_passes_and_finds_another_particles_draft():
    pyro.set_rng_seed(0)
    report = SMC(revise(MODEL, 3, prompt), 6, ess_threshold=1.0, audit=True).run("a").audit
    assert report is not None and report.num_sites > 0
    with pytest.raises(Exception, match=r"audit|barrier"):
        SMC(NeighboursDraft(MODEL, 3, prompt), 6, ess_threshold=1.0, audit=True).run("a")


def test_chains_keep_the_exact_distribution():
    """25 moves of 1,000 chains from the prior; the last states against the enumerated ones."""
    _, table = exact(2)
    pyro.set_rng_seed(2)
    chains = 1000
    posterior = SuffixMH(revise(MODEL, 2, prompt), max_plate_nesting=1).run(25, ["a"] * chains)
    last = posterior.iterations[-1]
    share = {text: torch.zeros(chains, dtype=torch.float64) for text in table}
    for weights, row in zip(last.weights, last.value.text, strict=True):
        for r, text in enumerate(row):
            share[text][r] += weights[r]
    worst = max(abs(float((share[text].mean() - p) / share[text].std().clamp(min=1e-9) * chains**0.5)) for text, p in table.items())
    assert worst < LIMIT


def test_islands_and_problems():
    pyro.set_rng_seed(0)
    posterior = SMC(revise(MODEL, 2, prompt), 4, islands=2, max_plate_nesting=1).run(["a", "b"])
    assert posterior.value.problem[0] == ["a", "b"]


def test_the_demo_models_revise():
    """A prompt of one's own, which the demo model understands: the problem again."""
    lm, prm = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    seen: list[tuple[str, str]] = []

    def again(problem: str, draft: str) -> str:
        seen.append((problem, draft))
        return problem

    model = revise(reasoning(lm, prm, max_steps=6, max_tokens=64), 2, again)
    pyro.set_rng_seed(0)
    problem = "Begin with 12. First: take away 5. Second: increase it by 3. What number do you get?"
    posterior = SMC(model, 4).run(problem)
    assert model.choose(posterior) == "10"
    assert [asked for asked, _ in seen] == [problem] * 4 and all("answer" in draft or draft for _, draft in seen)
    assert posterior.value.problem == [problem] * 4


def test_the_default_prompt_is_a_conversation():
    messages = ask_again("1 + 1", "3")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "3"


def test_a_single_execution_is_one_of_the_enumerated_ones():
    """Without particles, as under Pyro's own handlers: the joint density is p of both rounds times the factors of the last."""
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(revise(MODEL, 2, prompt)).get_trace("a")
    final, draft = trace.nodes["_RETURN"]["value"], trace.nodes["draft_0_step_0"]["value"]
    assert final.batch_shape == () and isinstance(final.text, str) and draft.dim() == 1
    first = "".join(
        SYMBOLS[v]
        for t in range(STEPS)
        if f"draft_0_step_{t}" in trace.nodes
        for v in trace.nodes[f"draft_0_step_{t}"]["value"].tolist()
        if 0 <= v < 3
    )
    p = next(p for text, p, _ in written("a") if text == first)
    q, g = next((p, g) for text, p, g in written("a" + first) if text == final.text)
    assert float(trace.log_prob_sum().exp()) == pytest.approx(p * q * g, rel=1e-5)


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1, got 0"):
        revise(MODEL, 0, prompt)
    with pytest.raises(ValueError, match=r"revise takes a model of reasoning.* itself, and this is a MultiTemperatureModel"):
        revise(multi_temperature(MODEL, [0.5, 1.0]))
    with pytest.raises(ValueError, match=r"revise takes a model of reasoning.* itself, and this is a RevisionModel"):
        revise(revise(MODEL))
    with pytest.raises(ValueError, match=r"multi_temperature takes a model of reasoning.* itself, and this is a RevisionModel"):
        multi_temperature(revise(MODEL), [0.5, 1.0])
    with pytest.raises(ValueError, match="prompt must be a function"):
        revise(MODEL, 2, "again")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model must be made by reasoning"):
        revise(lambda problem: None, 2, prompt)  # type: ignore[arg-type]
