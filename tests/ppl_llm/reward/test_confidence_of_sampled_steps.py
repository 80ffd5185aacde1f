"""Confidence takes what sampling had: the numbers of a second pass without the pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import PAD, SMC, BestOfN, Confidence, LLMStep, StepProposal, SumReward, TransformersLM, reasoning
from ppl_llm.context import Context
from ppl_llm.inference import run_concurrently
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm import token_figures
from ppl_llm.lm.base import StepOptions
from ppl_llm.reward.calibration import CalibratedReward, Calibration
from ppl_llm.reward.confidence import MEASURES
from tests.helpers.decoding_paths import looping, plain, uncached
from tests.helpers.tiny_models import causal_lm, tokenizer

PROBLEM = "What is 12 + 30?"
STOP = ("a", "1", "e")
PASSES = {"lm_forwards", "tokens_prefilled"}


def second_pass(reward: Confidence, context: Context) -> Tensor:
    """The same reward of the same steps, of which nothing is known."""
    again = Confidence(reward.kind, window=reward.window, over=reward.over, temperature=reward.temperature)
    return again.step_log_odds(replace(context, cache_entries={}))


def sampled(lm: TransformersLM, reward: Any, options: StepOptions, steps: int = 4) -> Context:
    """Contexts of ragged steps with resampling in between, each step scored; no score may cost a pass."""
    torch.manual_seed(0)
    context = lm.start(PROBLEM)
    reward.prepare(context)
    for _ in range(steps):
        context = context.extend(lm.sample_step(context, torch.Size((8,)), options).tokens, options.stop)
        with CostMeter() as meter:
            reward.step_log_odds(context)
        assert not PASSES & meter.totals.keys(), meter.totals
        context = context.reorder(torch.randint(0, 8, (8,)))
    return context


@pytest.mark.parametrize("make", [plain, looping, uncached])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("own", [1.0, 0.6])
@pytest.mark.parametrize("warp", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 30}], ids=["plain", "warped"])
def test_scores_are_those_of_a_second_pass(make: Any, measure: str, own: float, warp: dict[str, Any]) -> None:
    """At any temperature of the reward and of the steps; log-odds agree to 1e-4, and no pass is made."""
    lm, reward = make(), Confidence(measure, temperature=own)
    context = sampled(lm, reward, StepOptions(stop=STOP, max_tokens=12, **warp))
    assert (context.reasons[:, :3] != 0).any() and len({int(n) for n in context.lengths}) > 2
    torch.testing.assert_close(reward.step_log_odds(context), second_pass(reward, context), atol=1e-4, rtol=1e-4)


def test_parts_of_combined_and_calibrated_rewards() -> None:
    parts = [Confidence(), Confidence("entropy", temperature=0.5)]
    reward = CalibratedReward(SumReward(parts), Calibration(2.0, 0.1))
    context = sampled(plain(), reward, StepOptions(stop=STOP, max_tokens=12))
    expected = reward.calibration(second_pass(parts[0], context) + second_pass(parts[1], context))
    torch.testing.assert_close(reward.step_log_odds(context), expected, atol=1e-4, rtol=1e-4)


def test_steps_that_were_given_cost_a_pass_and_are_right() -> None:
    """A step of two of four sequences is another one than was sampled, and a step is given whose tokens are those of the one before."""
    lm, reward, options = plain(), Confidence(), StepOptions(stop=STOP, max_tokens=12)
    torch.manual_seed(0)
    context = lm.start(PROBLEM)
    reward.prepare(context)
    tokens = lm.sample_step(context, torch.Size((4,)), options).tokens
    mixed = torch.where(torch.tensor([False, True, False, True])[:, None], tokens.roll(1, 0), tokens)
    assert not torch.equal(mixed, tokens)
    context = context.extend(mixed, STOP)
    torch.testing.assert_close(reward.step_log_odds(context), second_pass(reward, context), atol=1e-4, rtol=1e-4)
    twice = context.extend(mixed, STOP)
    torch.testing.assert_close(reward.step_log_odds(twice), second_pass(reward, twice), atol=1e-4, rtol=1e-4)


def test_rejects_sums_that_are_taken_by_their_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a step has the sums of an earlier one with the same tokens."""
    kept = token_figures.kept

    def careless(context: Context, figure: Any, lengths: Tensor, tokens: Tensor) -> Any:
        entry = next((entry for entry in context.cache_entries.values() if "tokens" in entry.tensors), None)
        return kept(context, figure, lengths if entry is None else entry.tensors["lengths"], tokens)

    monkeypatch.setattr("ppl_llm.reward.confidence.kept", careless)
    with pytest.raises(AssertionError):
        test_steps_that_were_given_cost_a_pass_and_are_right()


def test_another_model_that_proposes_does_not_answer_for_the_target() -> None:
    """Tokens drawn by a proposal of another language model have the figures of neither; the scores are the target's."""
    lm, other = plain(), TransformersLM(causal_lm(max_position_embeddings=200, seed=1), tokenizer(), device_loop=False)
    reward = Confidence()
    model = reasoning(lm, reward, max_steps=3, stop=STOP, max_tokens=8)
    pyro.set_rng_seed(0)
    posterior = SMC(model, 6, ess_threshold=1.0, proposals=StepProposal(lm=other)).run(PROBLEM)
    context: Context = posterior.value
    torch.testing.assert_close(reward.step_log_odds(context), second_pass(reward, context), atol=1e-4, rtol=1e-4)


def totals(prm: Any, algorithm: Any) -> dict[str, float]:
    lm = plain()
    pyro.set_rng_seed(0)
    return dict(algorithm(reasoning(lm, prm, max_steps=4, stop=STOP, max_tokens=10)).run(PROBLEM).cost)


@pytest.mark.parametrize("measure", ["log-prob", "entropy", "top-k:16", "kl:16:bottom", "margin:16:tail", "log-prob:mean"])
def test_a_run_with_the_reward_makes_the_passes_of_one_without(measure: str) -> None:
    """Issue of the published models: 1,299 tokens were prefilled for 1,217 sampled; here as many as without a reward."""
    bare, rewarded = totals(None, lambda m: BestOfN(m, 8)), totals(Confidence.parse(measure), lambda m: BestOfN(m, 8))
    assert bare["tokens_sampled"] == rewarded["tokens_sampled"] > 100
    assert {name: bare[name] for name in PASSES} == {name: rewarded[name] for name in PASSES}


def test_programs_that_share_batches() -> None:
    """Two programs with other rewards, one without any, in the same forward passes: as alone."""
    lm = plain()
    rewards = [Confidence(), None, Confidence("entropy", temperature=0.7)]
    models = [reasoning(lm, reward, max_steps=3, stop=STOP, max_tokens=8) for reward in rewards]

    def program(model: Any, seed: int) -> Any:
        pyro.set_rng_seed(seed)
        return SMC(model, 5, ess_threshold=1.0).run(PROBLEM)

    for seed, (reward, posterior) in enumerate(
        zip(rewards, run_concurrently([lambda m=m, s=s: program(m, s) for s, m in enumerate(models)]), strict=True)
    ):
        alone = program(models[seed], seed)
        assert torch.equal(posterior.value.tokens, alone.value.tokens)
        if reward is not None:
            context = posterior.value
            torch.testing.assert_close(reward.step_log_odds(context), second_pass(reward, context), atol=1e-4, rtol=1e-4)


def test_a_program_written_by_hand_pays_for_its_first_step_only() -> None:
    lm, reward = plain(), Confidence()
    pyro.set_rng_seed(0)
    context, passes = lm.start(PROBLEM), []
    for _ in range(3):
        context = context.extend(LLMStep(context, stop=STOP, max_tokens=12).expand([8]).sample(), STOP)
        with CostMeter() as meter:
            reward.step_log_odds(context)
        passes.append(bool(PASSES & meter.totals.keys()))
    assert passes == [True, False, False] and PAD in context.tokens
