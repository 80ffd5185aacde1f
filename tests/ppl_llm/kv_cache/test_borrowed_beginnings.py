"""A beginning is found in whichever KV cache holds it, though a posterior that is kept still refers to that one."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

from ppl_llm import MCTS, TabularReward, TransformersLM, reasoning
from ppl_llm.context import Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache import lookup
from ppl_llm.kv_cache.engine import CacheEngine
from ppl_llm.lm.base import StepOptions
from tests.helpers.tiny_models import language_model

SHOTS = "What is 12 + 30? The answer is 42. What is 7 * 6? The answer is 42. "
QUESTIONS = ["What is 3 + 4?", "What is 5 + 9?", "What is 8 * 8?"]
OPTIONS = StepOptions(max_tokens=6)


def solved(lm: object, problem: object, number: int = 3) -> tuple[Context, torch.Tensor, int]:
    with CostMeter() as meter:
        context = lm.start(problem)  # type: ignore[attr-defined]
        context = context.expand((number, *context.batch_shape))
        torch.manual_seed(0)
        step, log_probs = lm.sample_step(context, context.batch_shape, OPTIONS)  # type: ignore[attr-defined]
        context = context.extend(step)
    return context, log_probs, int(meter.totals["tokens_prefilled"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_shared_beginning_is_run_once_whoever_holds_it(kept: bool) -> None:
    lm = language_model()
    alive = []
    prefilled = []
    for question in QUESTIONS:
        context, log_probs, ran = solved(lm, SHOTS + question)
        fresh, right, _ = solved(language_model(), SHOTS + question)
        assert torch.equal(context.tokens, fresh.tokens)
        torch.testing.assert_close(log_probs, right, atol=1e-5, rtol=0)
        prefilled.append(ran)
        if kept:
            alive.append(context)
    assert prefilled[0] > 40 and max(prefilled[1:]) < prefilled[0] / 3, prefilled
    for context in alive:  # what was borrowed from is as it was
        again, _ = lm.sample_step(context, context.batch_shape, OPTIONS), None
        whole = language_model()
        torch.testing.assert_close(
            lm.step_log_prob(context, again.tokens, OPTIONS),
            whole.step_log_prob(context, again.tokens, OPTIONS),
            atol=1e-5,
            rtol=0,
        )


def test_problems_of_a_batch_borrow_from_several_caches() -> None:
    """Two of four prompts are held elsewhere, one in part; the others are run; equal ones share."""
    lm = language_model()
    alive = [solved(lm, SHOTS + QUESTIONS[0])[0], solved(lm, "Another text altogether, and long. " * 3)[0]]
    batch = [SHOTS + QUESTIONS[1], "Nothing of the kind is held. " * 3, "Another text altogether, and long. " * 3, SHOTS + QUESTIONS[1]]
    context, log_probs, ran = solved(lm, batch)
    fresh, right, all_of_it = solved(language_model(), batch)
    assert torch.equal(context.tokens, fresh.tokens) and ran < 0.7 * all_of_it
    torch.testing.assert_close(log_probs, right, atol=1e-5, rtol=0)
    assert len(alive) == 2


def test_steps_that_another_cache_holds_are_not_run_again() -> None:
    """Six sequences continue steps that a context which is kept has written: a token each is run, the last one."""
    lm, fresh = language_model(), language_model()
    written, _, _ = solved(lm, SHOTS + QUESTIONS[0], 6)
    steps = written.tokens[:, int(written.prompt_lengths[0]) :]

    def continued(model: TransformersLM) -> tuple[Context, torch.Tensor, int]:
        context = model.start(SHOTS + QUESTIONS[0]).extend(steps)
        with CostMeter() as meter:
            torch.manual_seed(1)
            step, log_probs = model.sample_step(context, context.batch_shape, OPTIONS)
        return context.extend(step), log_probs, int(meter.totals["tokens_prefilled"])

    (found, log_probs, ran), (right, expected, all_of_it) = continued(lm), continued(fresh)
    assert torch.equal(found.tokens, right.tokens)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    continuing = steps[~written.done]
    assert ran == len(torch.unique(continuing, dim=0)) < all_of_it / 10
    del written


@pytest.mark.parametrize("value", ["prefix", "rollout"])
def test_a_tree_search_runs_few_tokens_again(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Beside the prompt and the last token of each prefix that is continued; with prompts alone from other caches it is twice as many."""

    def run_again() -> int:
        lm = language_model()
        reward = TabularReward(torch.linspace(-1.0, 1.0, lm.vocab_size))
        model = reasoning(lm, reward, "twisted", max_steps=5, tokens_per_step=6)
        again = [-len(lm.start(SHOTS).tokens) + 1]
        append = CacheEngine.append

        def counted(engine: CacheEngine, cache: Any, rows: Any, tokens: Any, lengths: Any, held: Any, wanted: Any) -> Any:
            again[0] += int((lengths - held - 1).sum())
            return append(engine, cache, rows, tokens, lengths, held, wanted)

        with monkeypatch.context() as patch:
            patch.setattr(CacheEngine, "append", counted)
            pyro.set_rng_seed(0)
            MCTS(model, 48, 8, value=value).run(SHOTS)
        return again[0]

    whole = run_again()
    borrow = lookup._borrow

    def prompts_alone(engine: Any, cache: Any, hint: Any, held: Any, tokens: Any, known: Any) -> None:
        borrow(engine, cache, hint, held, tokens, known.clamp(max=len(language_model().start(SHOTS).tokens)))

    monkeypatch.setattr(lookup, "_borrow", prompts_alone)
    before = run_again()
    print(whole, before)
    assert 0 < whole < before / 2
