"""Stop strings as an automaton against decoded text, and sampling from logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import sampling
from ppl_llm.lm.decoding.sampling import inverse_cdf, warp
from ppl_llm.lm.stopping import StopAutomaton, token_bytes
from tests.helpers.tiny_models import tokenizer

TOKENS = ["", "\n", "\n\n", "a", "b", "ab", "aab", ".\n", ".\n\n", "x\n\ny", "\n\n\n", "ba", "é", "é"[:1], "abab"]
ALMOST_ONE = 1 - 2.0**-53


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, len(TOKENS) - 1), max_size=12),
    st.sampled_from(
        [
            "\n\n",
            ("\n\n",),
            "aab",
            ("abab", "bb"),
            ("abab", "ba"),
            ("aab.", "ab", "x\n\ny"),
            ("a", "aab"),
            ("\n\n", "é"),
            ("ba", "aba", "abab", "\n"),
        ]
    ),
)
def test_accepts_exactly_when_the_text_contains_a_stop_string(ids: list[int], stops: str | tuple[str, ...]):
    automaton = StopAutomaton([token.encode() for token in TOKENS], stops)
    patterns = (stops,) if isinstance(stops, str) else stops
    state, text, found = torch.zeros((), dtype=torch.int32), "", False
    for i in ids:
        state, text = automaton.step(state, torch.tensor(i)), text + TOKENS[i]
        found = any(pattern in text for pattern in patterns)
        assert bool(state == automaton.accept) == found
    padded = torch.tensor([*ids, -1, -1])
    assert bool(automaton.accepts(padded)) == found


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 323), max_size=20))
def test_agrees_with_the_text_that_the_tokenizer_decodes(ids: list[int]):
    table = token_bytes(tokenizer(), len(tokenizer()))
    text = tokenizer().decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for stops in ("\n\n", ("e", "=\n"), "qq"):
        automaton = StopAutomaton(table, stops)
        patterns = (stops,) if isinstance(stops, str) else stops
        assert bool(automaton.accepts(torch.tensor([*ids, -1]))) == any(pattern in text for pattern in patterns)


def test_a_delimiter_may_lie_inside_a_token_or_across_two():
    automaton = StopAutomaton([b"x\n\ny", b"a\n", b"\nb", b"c"], "\n\n")
    accepted = automaton.accepts(torch.tensor([[0, -1, -1], [1, 2, -1], [1, 3, 2], [2, 1, 3]]))
    assert accepted.tolist() == [True, True, False, False]


def test_options_out_of_range():
    for options, message in (
        ({"stop": ""}, "stop must be a non-empty string"),
        ({"stop": ("a", "")}, "stop must be a non-empty string"),
        ({"stop": "markdwn"}, "did you mean 'markdown'"),
        ({"stop": ("\n\n", "Markdown")}, "did you mean 'markdown'"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\], got 1.5"),
        ({"top_k": 0}, "top_k must be None or an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            StepOptions(**options)


@pytest.mark.parametrize("vocab", [1, 7, 1024, 1025, 5000])
@pytest.mark.parametrize("density", [0.002, 0.2, 1.0])
def test_a_token_of_zero_probability_is_never_drawn(vocab: int, density: float):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(64, vocab, generator=generator) * 8
    removed = torch.rand(64, vocab, generator=generator) > density
    removed[torch.arange(64), torch.randint(0, vocab, (64,), generator=generator)] = False
    logits = logits.masked_fill(removed, -torch.inf)
    for u in (torch.zeros(64), torch.full((64,), ALMOST_ONE), torch.rand(64, generator=generator)):
        token, log_prob = inverse_cdf(logits.clone(), u.double())
        exact = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        assert exact.isfinite().all()
        torch.testing.assert_close(log_prob, exact, atol=1e-5, rtol=1e-5)


def test_the_ends_of_the_unit_interval_are_the_first_and_the_last_token():
    logits = torch.full((3, 3000), -torch.inf)
    logits[:, [5, 700, 2999 - 400]] = 0.0
    u = torch.tensor([0.0, 0.5, ALMOST_ONE], dtype=torch.float64)
    assert inverse_cdf(logits, u)[0].tolist() == [5, 700, 2599]


def test_two_levels_draw_what_one_level_draws(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 4000, generator=generator) * 3
    u = torch.rand(400, dtype=torch.float64, generator=generator)
    token, log_prob = inverse_cdf(logits.clone(), u)
    monkeypatch.setattr(sampling, "_BLOCK", 4000)
    small, small_log_prob = inverse_cdf(logits.clone(), u)
    assert torch.equal(token, small)
    torch.testing.assert_close(log_prob, small_log_prob, atol=1e-5, rtol=1e-5)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    u = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    token, _ = inverse_cdf(logits.expand(10000, -1), u)
    assert torch.bincount(token).tolist() == [1000, 2000, 3000, 4000]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.integers(1, 12), st.floats(0.2, 3.0))
def test_warping_keeps_the_smallest_set_that_reaches_top_p(seed: int, top_p: float, top_k: int, temperature: float):
    logits = torch.randn(10, generator=torch.Generator().manual_seed(seed))
    kept = warp(logits[None], StepOptions(top_p=top_p, top_k=top_k, temperature=temperature))[0].isfinite()
    probs = (logits / temperature).softmax(-1)
    order = probs.argsort(descending=True)[:top_k]
    cumulative = (probs[order] / probs[order].sum()).cumsum(-1)
    number = int((cumulative < top_p - 1e-6).sum()) + 1
    assert kept[order[:number]].all() and kept.sum() <= number + 1
