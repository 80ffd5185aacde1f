"""A head on the language model's own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ppl_llm import SMC, BestOfN, HiddenStateReward, OpenAILM, ParticleGibbs, RolloutValue, StepProposal, TabularLM, Twist, reasoning
from ppl_llm.inference import run_concurrently
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm import StepOptions
from ppl_llm.reward import StateHead
from tests.helpers.tiny_models import language_model
from tests.helpers.twist_mutants import StaleScores, StepBefore
from tests.ppl_llm.lm.test_hidden_states import OPTIONS, PROBLEMS, SHAPE, plain

POOLINGS = ["end", "mean"]


def head(seed: int = 0, size: int = 32) -> StateHead:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = StateHead(size, 16)
    made.outer.weight.data *= 20
    return made.requires_grad_(False)


def made(lm: Any = None, pooling: str = "end", kind: type[HiddenStateReward] = HiddenStateReward) -> HiddenStateReward:
    return kind(lm or language_model(), head(), pooling=pooling)


def run_steps(reward: HiddenStateReward, steps: int = 3) -> tuple[Any, Tensor]:
    """Steps, scored and resampled one after another: the context and the scores that the reward gives in the end."""
    pyro.set_rng_seed(3)
    lm, context = reward.lm, reward.lm.start(PROBLEMS).expand(SHAPE)
    for _ in range(steps):
        context = context.extend(lm.sample_step(context, SHAPE, OPTIONS).tokens, stop=OPTIONS.stop)
        scores = reward.step_log_odds(context)
        index = torch.randint(0, SHAPE[0], SHAPE)
        context = context.reorder(index)
    return context, reward.step_log_odds(context) if steps else scores


def expected(reward: HiddenStateReward, context: Any) -> Tensor:
    """By a pass over whole texts."""
    states, columns = plain(reward.lm, context), []  # type: ignore[arg-type]
    place = torch.arange(states.shape[-2])
    for t in range(context.num_steps):
        begin, end = context.step_starts[..., t], context.ends[..., t]
        inside = (place >= begin[..., None]) & (place < end[..., None])
        inside &= torch.tensor(reward.pooling == "mean") | (place == end[..., None] - 1)
        mean = (states * inside[..., None]).sum(-2) / inside.sum(-1).clamp(min=1)[..., None]
        columns.append(torch.where(end > begin, reward.head(mean), columns[-1] if columns else torch.inf))
    return torch.stack(columns, -1)


def distance(kind: type[HiddenStateReward], pooling: str = "end") -> float:
    reward = made(pooling=pooling, kind=kind)
    context, scores = run_steps(reward)
    return float((scores - expected(reward, context)).abs().max())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_the_heads_of_a_plain_forward(pooling: str) -> None:
    reward = made(pooling=pooling)
    context, scores = run_steps(reward)
    assert scores.shape == (*SHAPE, 3) and scores.dtype == torch.float32
    assert float((scores - expected(reward, context)).abs().max()) < 1e-4
    assert float(scores.std()) > 0.5  # and differ
    fresh = context.flat(torch.arange(12)).select_plate(0, 3)  # nothing is known of it
    assert torch.allclose(made(reward.lm, pooling).step_log_odds(fresh), scores.reshape(12, 3)[3], atol=1e-4)


@pytest.mark.parametrize("wrong", [StepBefore])
def test_rejects_wrong_states(wrong: type[HiddenStateReward]) -> None:
    assert distance(wrong) > 0.1


@pytest.mark.parametrize("wrong", [StaleScores])
def test_rejects_stale_states(wrong: type[HiddenStateReward]) -> None:
    assert distance(wrong) > 0.1


def test_a_filter_with_it_costs_one_pass_more_than_without() -> None:
    """Weights are loaded once, and no token is run twice: the state at the end of a step is what the next one begins with."""
    costs = {}
    for scored in (False, True):
        lm = language_model()
        reward = made(lm) if scored else None
        model = reasoning(lm, reward, preset="twisted", max_steps=4, max_tokens=6, stop=OPTIONS.stop, early_exit=False)
        pyro.set_rng_seed(0)
        with CostMeter() as cost:
            posterior = SMC(model, 6, ess_threshold=0.0, max_plate_nesting=1).run(PROBLEMS)
        costs[scored] = cost.totals
        assert not bool(posterior.value.done.all())
    assert costs[True]["tokens_sampled"] == costs[False]["tokens_sampled"]
    assert costs[True]["lm_forwards"] == costs[False]["lm_forwards"] + 1
    assert costs[True]["prm_calls"] > 0 and costs[True]["prm_tokens"] == 0


@pytest.mark.parametrize("pooling", POOLINGS)
def test_algorithms(pooling: str) -> None:
    """Resampling, several problems, the audit, chains, searches, and programs that take turns."""
    lm = language_model()
    reward = made(lm, pooling)
    model = reasoning(lm, reward, preset="twisted", max_steps=3, max_tokens=6, stop=OPTIONS.stop)
    pyro.set_rng_seed(0)
    posterior = SMC(model, 6, ess_threshold=1.0, max_plate_nesting=1, audit=True).run(PROBLEMS)
    assert bool(posterior.resampled.any())
    z = reward.step_log_odds(posterior.value)
    assert float((z - expected(reward, posterior.value)).abs().max()) < 1e-4
    pyro.set_rng_seed(0)
    again = SMC(model, 6, ess_threshold=1.0, max_plate_nesting=1).run(PROBLEMS)
    assert torch.allclose(again.log_evidence, posterior.log_evidence)
    ParticleGibbs(model, 4, ancestor_sampling=True).run(2, PROBLEMS[0])
    assert BestOfN(model, 4).run(PROBLEMS[0]).answers() is not None
    other = SMC(model, 4, proposals=StepProposal(temperature=1.3)).run(PROBLEMS[0])
    assert bool(torch.isfinite(other.log_evidence))
    turns = run_concurrently([lambda p=p: SMC(model, 4).run(p) for p in PROBLEMS], seeds=[1, 2])
    assert all(bool(torch.isfinite(each.log_evidence)) for each in turns)


@pytest.mark.parametrize("kind", ["head", "rollouts"])
def test_a_resumed_run_is_the_same(kind: str, tmp_path: Path) -> None:
    def smc() -> SMC:
        lm = language_model()
        rollouts = RolloutValue(lm, lambda problem, text: 0.2 + len(text) % 3 / 4, 2, options=StepOptions(OPTIONS.stop, 6), max_steps=3)
        reward = made(lm) if kind == "head" else rollouts
        return SMC(reasoning(lm, reward, preset="twisted", max_steps=3, max_tokens=6, stop=OPTIONS.stop), 6, ess_threshold=0.9)

    pyro.set_rng_seed(0)
    states = list(smc().iterate(PROBLEMS[0]))
    states[0].save(tmp_path / "state")
    resumed = smc().resume(tmp_path / "state", PROBLEMS[0])
    assert resumed.value.text == states[-1].value.text
    assert torch.allclose(resumed.log_weights, states[-1].log_weights, atol=1e-4)


def test_with_a_verifier_at_the_end() -> None:
    lm = language_model()
    twist = Twist(made(lm), lambda problem, text: len(text) % 2 == 0)
    model = reasoning(lm, twist, preset="twisted", max_steps=3, max_tokens=6, stop=OPTIONS.stop, finish="[a-m]")
    pyro.set_rng_seed(0)
    posterior = SMC(model, 64).run(PROBLEMS[0])
    alive = posterior.weights > 0
    assert bool(alive.any()) and not bool(alive.all())
    assert all(len(text) % 2 == 0 for text, lives in zip(posterior.value.text, alive.tolist(), strict=True) if lives)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_saved_and_loaded(pooling: str, tmp_path: Path) -> None:
    lm, file = language_model(), tmp_path / "head.safetensors"
    reward = made(lm, pooling)
    reward.save(file, "path/to/lm", {"trained": 3})
    loaded = HiddenStateReward.load(file, language_model())
    context, scores = run_steps(reward)
    assert loaded.pooling == pooling
    assert torch.allclose(loaded.step_log_odds(context.flat(torch.arange(12))), scores.reshape(12, 3), atol=1e-4)
    with pytest.raises(ValueError, match=r"was trained on hidden states of the language model 'path/to/lm' \(.*and this is another one"):
        HiddenStateReward.load(file, language_model(seed=1))


def test_what_is_refused(tmp_path: Path) -> None:
    lm, table = language_model(), TabularLM(torch.zeros(2, 2), ["a", "$"], eos="$")
    with pytest.raises(ValueError, match="TabularLM gives no hidden states, and HiddenStateReward reads them"):
        HiddenStateReward(table, head())
    served = OpenAILM.__new__(OpenAILM)
    served.vocab_size, served.max_length, served.eos_ids = 3, 9, torch.tensor([0])
    with pytest.raises(ValueError, match="OpenAILM gives no hidden states"):
        HiddenStateReward(served, head())
    with pytest.raises(ValueError, match=r"for hidden states of 8 numbers, and those of .* have 32"):
        HiddenStateReward(lm, head(size=8))
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        HiddenStateReward(lm, head(), pooling="max")
    with pytest.raises(ValueError, match="another vocabulary"):
        made(lm).step_log_odds(table.start("a").extend(torch.tensor([0]), stop=()))
    with pytest.raises(OSError, match=r"no file 'nowhere' with a head.*ppl-llm fit-reward"):
        HiddenStateReward.load("nowhere", lm)
    wrong = tmp_path / "wrong"
    wrong.write_text("text")
    with pytest.raises(ValueError, match="not in safetensors format"):
        HiddenStateReward.load(wrong, lm)
    save_file({"x": torch.ones(1)}, wrong)
    with pytest.raises(ValueError, match="holds no head"):
        HiddenStateReward.load(wrong, lm)
    broken = made(lm)
    broken.head.outer.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"log-odds that HiddenStateReward gives to step 0 of sequence .* is nan"):
        run_steps(broken)


# Training


def cloud(problems: int = 40, each: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """States of which one direction says what is right, and another one which problem it is."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(problems).repeat_interleave(each)
    states = torch.randn(len(groups), 32, generator=generator)
    right = (torch.rand(len(groups), generator=generator) < torch.sigmoid(2 * states[:, 0])).float()
    return states, right, groups


def test_the_head_learns_and_leaves_the_generators_alone() -> None:
    states, right, groups = cloud()
    before = torch.get_rng_state()
    fitted = StateHead.fit(states, right, groups)
    assert torch.equal(before, torch.get_rng_state())
    fresh = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    error = (fitted(fresh).sigmoid() - torch.sigmoid(2 * fresh[:, 0])).abs().mean()
    assert float(error) < 0.15  # a constant 1/2 is off by 0.31
    again = StateHead.fit(states, right, groups)
    assert torch.equal(again(fresh), fitted(fresh))
    assert not torch.equal(StateHead.fit(states, right, groups, seed=1)(fresh), fitted(fresh))


def test_training_stops_before_it_learns_by_heart() -> None:
    """Labels that are a coin's: the head says about 1/2."""
    states, right, groups = cloud()
    coin = (torch.rand(len(right), generator=torch.Generator().manual_seed(2)) < 0.5).float()
    fitted = StateHead.fit(states, coin, groups)
    assert float((fitted(states).sigmoid() - 0.5).abs().mean()) < 0.15


def test_what_a_head_cannot_be_trained_on() -> None:
    states, right, groups = cloud(4, 4)
    with pytest.raises(ValueError, match="all 16 examples are wrong; a head needs both kinds"):
        StateHead.fit(states, torch.zeros(16), groups)
    with pytest.raises(ValueError, match="at least two problems"):
        StateHead.fit(states, right, torch.zeros(16))
    states[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"the hidden states hold nan or infinite values \(number 3 of 16\)"):
        StateHead.fit(states, right, groups)
