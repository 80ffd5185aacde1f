"""A step drawn at one temperature and scored at another: the log-probability of a second pass without the pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import PAD, SMC, LLMStep, StepProposal, reasoning
from ppl_llm.context import Context
from ppl_llm.inference import power
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm import token_figures
from tests.helpers.decoding_paths import looping, plain, uncached
from tests.helpers.reasoning import LM as TABLE

STOP = ("a", "1", "e")
SCORING = {"lm_forwards", "tokens_prefilled"}
"""What a pass over given steps counts."""


def table() -> Any:
    return TABLE


MODELS = {"cache": (plain, 3e-5), "device loop": (looping, 3e-5), "no cache": (uncached, 3e-5), "table": (table, 1e-12)}


def step(context: Context, temperature: float | Tensor, **options: Any) -> LLMStep:
    stop, tokens = (";", 2) if context.lm is TABLE else (STOP, 12)
    return LLMStep(context, stop, tokens, temperature, **options)


def second_pass(prior: LLMStep, value: Tensor) -> Tensor:
    """The same density of a context of which nothing is known."""
    o = prior.options
    bare = replace(prior.context, cache_entries={})
    return LLMStep(bare, o.stop, o.max_tokens, o.temperature, o.top_p, o.top_k).expand(prior.batch_shape).log_prob(value)


def passes(prior: LLMStep, value: Tensor) -> tuple[Tensor, bool]:
    """The density of a value, and whether it took a pass."""
    with CostMeter() as meter:
        found = prior.log_prob(value)
    return found, bool(SCORING & meter.totals.keys())


def start(make: Any) -> Context:
    torch.manual_seed(0)
    lm = make()
    return lm.start("a" if lm is TABLE else "What is 12 + 30?")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hot", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("cold", [0.7, 1.0])
def test_as_a_second_pass_would_have_it(name: str, hot: float, cold: float) -> None:
    """Along three steps of ragged sequences, some of which end, with resampling in between."""
    make, error = MODELS[name]
    context, lengths = start(make), set()
    for _ in range(3):
        prior, proposal = step(context, cold).expand([8]), step(context, hot).expand([8])
        prior.proposed_by(proposal)
        value = proposal.sample()
        found, passed = passes(prior, value)
        assert not passed or name == "table"
        torch.testing.assert_close(found.double(), second_pass(prior, value).double(), atol=error, rtol=0)
        lengths |= set((value != PAD).sum(-1).tolist())
        context = context.extend(value, prior.options.stop).reorder(torch.randint(0, 8, (8,)))
    assert len(lengths) > 1


@pytest.mark.parametrize("name", MODELS)
def test_steps_that_were_not_drawn_here_take_a_pass_of_their_own(name: str) -> None:
    """Some of the particles have another value, as the reference of a conditional filter does."""
    make, error = MODELS[name]
    context = start(make)
    prior, proposal = step(context, 0.7).expand([8]), step(context, 2.0).expand([8])
    prior.proposed_by(proposal)
    other, value = proposal.sample(), proposal.sample()
    mixed = torch.where((torch.arange(8) < 3)[:, None], other, value)
    found, passed = passes(prior, mixed)
    assert passed or name == "table"
    torch.testing.assert_close(found.double(), second_pass(prior, mixed).double(), atol=error, rtol=0)
    assert (found[:3] - prior.log_prob(value)[:3]).abs().max() > 0.01


def test_values_that_are_no_steps_stay_impossible() -> None:
    context = start(plain)
    prior, proposal = step(context, 0.7).expand([4]), step(context, 2.0).expand([4])
    prior.proposed_by(proposal)
    value = proposal.sample()
    longer = torch.where(value == PAD, 5, value)  # continues behind its end
    expected = second_pass(prior, longer)
    assert torch.equal(expected == -torch.inf, (value == PAD).any(-1))
    torch.testing.assert_close(prior.log_prob(longer), expected, atol=1e-5, rtol=0)


def of_two_problems() -> tuple[LLMStep, Tensor]:
    """Two particles of two problems: of a problem's steps, entries that one dimension more has got into."""
    torch.manual_seed(0)
    context = TABLE.start(["a", "b"])
    prior, proposal = step(context, 0.7).expand([2, 2]), step(context, 2.0).expand([2, 2])
    prior.proposed_by(proposal)
    value = proposal.sample()
    return step(context[0], 0.7).expand([2]), value[0]


def of_several_looks_ahead() -> tuple[LLMStep, Tensor]:
    """Three looks ahead of three particles, of which others are then kept."""
    torch.manual_seed(1)
    context = TABLE.start("a")
    context = context.extend(step(context, 1.0).expand([3]).sample(), ";")
    prior, proposal = step(context, 0.7), step(context, 2.0)
    prior.proposed_by(proposal)
    value = proposal.sample(torch.Size([3]))
    others = torch.tensor([1, 0, 1])
    return step(context.reorder(others), 0.7), value[others]


def after_other_text() -> tuple[LLMStep, Tensor]:
    """The same lengths and the same step after another prompt."""
    torch.manual_seed(0)
    context = TABLE.start("ab")
    prior, proposal = step(context, 0.7).expand([4]), step(context, 2.0).expand([4])
    prior.proposed_by(proposal)
    value = proposal.sample()
    return step(replace(TABLE.start("ba"), cache_entries=dict(context.cache_entries)), 0.7).expand([4]), value


ELSEWHERE = [of_two_problems, of_several_looks_ahead, after_other_text]


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_figure_is_that_of_the_tokens_before_the_step_too(case: Any) -> None:
    """Whatever became of the context that has it."""
    prior, value = case()
    assert torch.allclose(prior.log_prob(value).double(), second_pass(prior, value).double(), atol=1e-6, rtol=0)


def test_rejects_figures_that_are_found_by_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(context: Context, figure: Any, lengths: Tensor, tokens: Tensor) -> Any:
        for entry in context.cache_entries.values():
            if "prefix" in entry.tensors:
                entry.tensors["prefix"] = context.tokens
        return token_figures.kept(context, figure, lengths, tokens)

    monkeypatch.setattr("ppl_llm.lm.autoregressive.kept", blind)
    for case in ELSEWHERE:
        prior, value = case()
        assert (prior.log_prob(value) - second_pass(prior, value)).abs().max() > 0.1, case.__name__


def test_a_wish_is_for_one_step() -> None:
    """Steps after it cost nothing more, and what is known of earlier ones does not add up."""
    context = start(plain)
    for t in range(3):
        prior, proposal = step(context, 0.7 + t / 10).expand([4]), step(context, 2.0).expand([4])
        prior.proposed_by(proposal)
        assert len(token_figures.wanted(context, context.lm)) == 1
        value = proposal.sample()
        assert token_figures.wanted(context, context.lm) == ()
        prior.log_prob(value)
        context = context.extend(value, STOP)
        assert sum("prefix" in entry.tensors for entry in context.cache_entries.values()) == 1


def test_a_wish_that_lasts_is_left_alone() -> None:
    context = start(plain)
    figure = token_figures.TokenFigure("log_prob", 0.7)
    token_figures.want(context, figure)
    prior, proposal = step(context, 0.7).expand([4]), step(context, 2.0).expand([4])
    prior.proposed_by(proposal)
    value = proposal.sample()
    assert not passes(prior, value)[1]
    assert token_figures.wanted(context.extend(value, STOP), context.lm) == (figure,)


def other_lm(context: Context) -> LLMStep:
    return step(replace(context, lm=plain()), 2.0)


UNKNOWN = {
    "nucleus": ({"top_p": 0.9}, lambda context: step(context, 2.0)),
    "most probable": ({"top_k": 20}, lambda context: step(context, 2.0)),
    "own temperatures": ({"temperature": torch.linspace(0.5, 2.0, 8)}, lambda context: step(context, 2.0)),
    "language model": ({}, other_lm),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_logits_at_one_temperature_do_not_tell_takes_a_pass(name: str) -> None:
    options, proposing = UNKNOWN[name]
    context = start(plain)
    prior, proposal = step(context, **{"temperature": 0.7, **options}).expand([8]), proposing(context).expand([8])  # type: ignore[arg-type]
    prior.proposed_by(proposal)
    value = proposal.sample()
    found, passed = passes(prior, value)
    assert passed
    torch.testing.assert_close(found, second_pass(prior, value), atol=1e-5, rtol=0)


def test_a_filter_of_the_power_target_makes_the_passes_of_sampling_alone() -> None:
    """One for each token of the longest sequence in each step, and that of the prompt; no token is run twice."""
    model = reasoning(plain(), None, stop=STOP, max_tokens=12, max_steps=3)
    pyro.set_rng_seed(0)
    found = SMC(power(model, 3.0), 8, proposals=StepProposal(temperature=1 / 3), ess_threshold=1.0).run("What is 12 + 30?").cost
    assert found["lm_forwards"] <= 3 * 12 + 1
    written = found["tokens_sampled"]
    assert found["tokens_prefilled"] < len(plain().start("What is 12 + 30?").tokens.flatten()) + written


BROKEN = {
    "another temperature": lambda options: token_figures.TokenFigure("log_prob", 1.3),
    "the proposal's": lambda options: token_figures.TokenFigure("log_prob", 2.0),
    "truncated": lambda options: token_figures.TokenFigure("log_prob", float(options.temperature)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rejects_wrong_figures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The density of a step is wrong by more than a tenth of a nat."""
    for place in ("ppl_llm.lm.autoregressive", "ppl_llm.distributions.llm_step"):
        monkeypatch.setattr(f"{place}.log_prob_figure", BROKEN[name])
    context = start(plain)
    prior = step(context, 0.7, top_p=0.5 if name == "truncated" else 1.0).expand([8])
    proposal = step(context, 2.0).expand([8])
    prior.proposed_by(proposal)
    value = proposal.sample()
    found = prior.log_prob(value)
    monkeypatch.undo()
    assert not torch.allclose(found, second_pass(prior, value), atol=0.1, rtol=0)
