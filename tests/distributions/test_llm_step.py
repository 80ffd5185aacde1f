"""LLMStep on a tabular language model: the distribution of a step, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions.testing.gof import multinomial_goodness_of_fit
from torch import Tensor

from ppl_llm import PAD, SMC, LLMStep, TabularLM
from ppl_llm.constraints import Choices
from ppl_llm.lm.base import StepSample
from ppl_llm.lm.token_figures import TokenFigure
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers import reasoning
from tests.helpers.population_mutants import WRONG_STEPS
from tests.helpers.tiny_models import causal_lm, tokenizer

SYMBOLS = ["a", "b", ";", "$"]


def make_lm(seed: int = 0, order: int = 1) -> TabularLM:
    generator = torch.Generator().manual_seed(seed)
    return TabularLM(torch.randn(*[4] * (order + 1), generator=generator, dtype=torch.float64), SYMBOLS, eos="$")


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "stop": draw(st.sampled_from([";", "ab", ("a;", "bb"), "aab"])),
        "max_tokens": draw(st.integers(1, 4)),
        "temperature": draw(st.sampled_from([0.3, 1.0, 2.0])),
        "top_p": draw(st.sampled_from([0.3, 0.8, 1.0])),
        "top_k": draw(st.sampled_from([None, 1, 2, 3])),
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 5), order=st.integers(1, 2), prompt=st.sampled_from(["aa", "ba", "a;"]), kwargs=options())
def test_probabilities_sum_to_one(seed: int, order: int, prompt: str, kwargs: dict[str, Any]) -> None:
    """Stop strings inside, across and at the end of steps leak no mass, and every value listed ends where sampling ends it."""
    step = LLMStep(make_lm(seed, order).start(prompt), **kwargs)
    values = step.enumerate_support()
    assert len({tuple(v) for v in values.tolist()}) == len(values)
    log_probs = step.log_prob(values)
    assert torch.isfinite(log_probs).all()
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(kwargs=options())
def test_samples_follow_log_prob(kwargs: dict[str, Any]) -> None:
    """Chi-square over all steps, one batch of 20 000 draws; the seed is fixed, the false alarm 1e-6 per structure."""
    pyro.set_rng_seed(0)
    step = LLMStep(make_lm(1).start("a"), **kwargs)
    values = step.enumerate_support()
    drawn = step.expand([20_000]).sample()
    codes = {tuple(v): i for i, v in enumerate(values.tolist())}
    counts = torch.zeros(len(values), dtype=torch.long)
    for row in drawn.tolist():
        counts[codes[tuple(row)]] += 1
    assert multinomial_goodness_of_fit(step.log_prob(values).exp(), counts, total_count=20_000) > 1e-6


def test_goodness_of_fit_has_power() -> None:
    """Samples at another temperature are rejected."""
    pyro.set_rng_seed(0)
    context = make_lm(1).start("a")
    step, other = LLMStep(context, stop=";", max_tokens=3), LLMStep(context, stop=";", max_tokens=3, temperature=1.2)
    values = step.enumerate_support()
    codes = {tuple(v): i for i, v in enumerate(values.tolist())}
    counts = torch.zeros(len(values), dtype=torch.long)
    for row in other.expand([20_000]).sample().tolist():
        counts[codes[tuple(row)]] += 1
    assert multinomial_goodness_of_fit(step.log_prob(values).exp(), counts, total_count=20_000) < 1e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(kwargs=options(), seed=st.integers(0, 100))
def test_log_prob_of_a_sample_is_that_of_an_equal_value(kwargs: dict[str, Any], seed: int) -> None:
    pyro.set_rng_seed(seed)
    context = make_lm(2).start("a")
    first = context.extend(LLMStep(context, stop=";", max_tokens=2).expand([7, 3]).sample(), stop=";")
    step = LLMStep(first, **kwargs)
    value = step.sample()
    assert value.shape == (7, 3, kwargs["max_tokens"])
    torch.testing.assert_close(step.log_prob(value), step.log_prob(value.clone()), atol=1e-6, rtol=1e-6)


def finished_and_open() -> tuple[Any, LLMStep]:
    context = make_lm().start("a")
    steps = torch.tensor([[3, PAD], [0, 2]])  # the first sequence ends the text
    grown = context.extend(steps, stop=";")
    assert grown.done.tolist() == [True, False]
    return grown, LLMStep(grown, stop=";", max_tokens=2)


def test_finished_sequences_emit_padding_with_probability_one() -> None:
    _, step = finished_and_open()
    value = step.sample()
    assert value[0].tolist() == [PAD, PAD]
    assert step.log_prob(value)[0].item() == 0.0
    assert step.log_prob(torch.tensor([[0, 2], [0, 2]]))[0].item() == -torch.inf


@pytest.mark.parametrize(
    "impossible",
    [[PAD, PAD], [2, 0], [0, PAD], [3, 0], [PAD, 0], [0, 9]],
    ids=["empty", "after the stop", "no stop", "after the end", "hole", "no such token"],
)
def test_impossible_steps_have_probability_zero(impossible: list[int]) -> None:
    _, step = finished_and_open()
    assert step.log_prob(torch.tensor([[PAD, PAD], impossible]))[1].item() == -torch.inf


class CountingLM(TabularLM):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = 0

    def sample_step(self, *args: Any) -> StepSample:
        self.calls += 1
        return super().sample_step(*args)

    def step_log_prob(self, *args: Any) -> Tensor:
        self.calls += 1
        return super().step_log_prob(*args)


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 3.0}, {"top_k": 2, "top_p": 0.9}, {"constraint": Choices(["ab", "bb"])}])
def test_the_mode_is_the_greedy_step(kwargs: dict[str, Any]) -> None:
    """At each place the most probable token, of those that a constraint allows, until the step ends; of each sequence of a batch."""
    for seed in range(6):
        lm = make_lm(seed)
        allowed = {"", "a", "ab", "b", "bb"} if "constraint" in kwargs else None
        context = lm.start(["a", "b", "a"])
        found = LLMStep(context, stop=";", max_tokens=3, **kwargs).mode
        for prompt, step in zip("aba", found.tolist(), strict=True):
            text, last, expected = "", SYMBOLS.index(prompt), []
            while len(expected) < 3 and not (expected and SYMBOLS[expected[-1]] in ";$"):
                ranked = lm.logits[last].argsort(descending=True).tolist()
                if allowed is not None:
                    ends = text in ("ab", "bb")
                    ranked = [i for i in ranked if (SYMBOLS[i] == "$" if ends else text + SYMBOLS[i] in allowed)]
                last = ranked[0]
                expected.append(last)
                text += SYMBOLS[last]
            assert [token for token in step if token != PAD] == expected


def test_construction_and_expansion_do_no_work_and_log_probs_are_kept() -> None:
    lm = CountingLM(torch.randn(4, 4), SYMBOLS, eos="$")
    step = LLMStep(lm.start("a"), stop=";", max_tokens=3).expand([1000]).expand([5, 1000])
    assert lm.calls == 0
    value = step.sample()
    step.log_prob(value)
    assert lm.calls == 1
    step.log_prob(value.clone())
    assert lm.calls == 2


def test_pyro_contract() -> None:
    _, step = finished_and_open()
    assert step.batch_shape == (2,) and step.event_shape == (2,) and step.event_dim == 1
    assert step.has_enumerate_support
    assert step.support.check(torch.tensor([[PAD, PAD], [0, 3]])).tolist() == [True, True]
    assert step.support.check(torch.tensor([[PAD, PAD], [0, 4]])).tolist() == [True, False]
    assert step.enumerate_support().shape[1:] == (2, 2)
    assert step.enumerate_support(expand=False).shape[1:] == (1, 2)
    assert LLMStep(make_lm().start("a")).sample((4,)).shape == (4, 256)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_k": 0}, "top_k must be None or an integer of at least 1, got 0"),
        ({"stop": ""}, "stop must be a non-empty string"),
        ({"stop": ("a", "")}, "stop must be a non-empty string"),
    ],
)
def test_bad_options(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMStep(make_lm().start("a"), **kwargs)


def test_a_value_of_another_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a step has 3 token places \(max_tokens\), got a value with 2"):
        LLMStep(make_lm().start("a"), stop=";", max_tokens=3).log_prob(torch.tensor([0, 2]))


def test_bad_tables_and_problems() -> None:
    with pytest.raises(ValueError, match="logits must have shape"):
        TabularLM(torch.zeros(3, 4), SYMBOLS, eos="$")
    with pytest.raises(ValueError, match="eos 'x' is not among"):
        TabularLM(torch.zeros(4, 4), SYMBOLS, eos="x")
    for text in ("", "xyz"):
        with pytest.raises(ValueError, match="a problem must be 1 or more of the symbols"):
            make_lm().start(text)


@pytest.fixture
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", ["table", "cached transformer"])
def test_log_probabilities_with_float64_as_the_default(backend: str) -> None:
    """Drawn and scored log-probabilities agree, and entropies are there, whatever torch's default number format is."""
    pyro.set_rng_seed(1)
    lm: Any = make_lm() if backend == "table" else TransformersLM(causal_lm(), tokenizer(), max_length=64)
    step = LLMStep(lm.start("a"), stop=";", max_tokens=4).expand([7])
    value = step.sample()
    drawn, scored = step.log_prob(value), step.log_prob(value.clone())
    assert drawn.dtype == scored.dtype == torch.float64
    torch.testing.assert_close(drawn, scored, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(lm.token_values(lm.start("a"), value, TokenFigure("entropy"))).all()


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_rejects_log_probabilities_in_float32(name: str) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        step = WRONG_STEPS[name](make_lm().start("a"), stop=";", max_tokens=4).expand([7])
        value = step.sample()
        assert step.log_prob(value).dtype != step.log_prob(value.clone()).dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.usefixtures("float64")
def test_a_program_with_float64_as_the_default() -> None:
    """Scores of given steps: an audit, and evidence against enumeration."""
    pyro.set_rng_seed(2)
    posterior = SMC(reasoning.solve, 2000, ess_threshold=1.0, audit=True).run("a")
    assert posterior.audit is not None and posterior.audit.error == 0.0
    exact = sum(p * math.prod(1 / (1 + math.exp(-s)) for s in z) for _, _, p, z, _ in reasoning.trajectories())
    assert float(posterior.log_evidence.exp()) == pytest.approx(exact, rel=0.1)
