"""Regular expressions as delimiters: the automaton against Python's own search, tokens, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import PAD, LLMStep, StopPattern, StopReason, TabularLM
from ppl_llm.lm import stop_pattern
from ppl_llm.lm.base import StepOptions, step_limits
from ppl_llm.lm.stop_pattern import pattern_automaton
from ppl_llm.lm.stopping import StopAutomaton

ATOMS = ["a", "b", "é", "🙂", "ab", ".", "[ab]", "[^a]", "[^é]", r"\s", r"\S", r"\.", "[à-ï]", r"[1,]", "[^ab]"]


@st.composite
def patterns(draw: st.DrawFn, depth: int = 2) -> str:
    if depth == 0:
        return draw(st.sampled_from(ATOMS))
    below = patterns(depth - 1)
    kind = draw(st.sampled_from(["atom", "both", "either", "repeat", "group"]))
    if kind == "atom":
        return draw(st.sampled_from(ATOMS))
    if kind in ("both", "either"):
        return f"{draw(below)}{'' if kind == 'both' else '|'}{draw(below)}"
    return f"(?:{draw(below)}){draw(st.sampled_from(['+', '*', '?', '{2}', '{1,2}', '{0,2}', '+?', ''])) if kind == 'repeat' else ''}"


def accepted(automaton: np.ndarray, text: str) -> list[bool]:
    """Whether a match has ended after each byte."""
    state, found = 0, []
    for byte in text.encode():
        state = int(automaton[state, byte])
        found.append(state == len(automaton) - 1)
    return found


@settings(max_examples=150, derandomize=True, deadline=None)
@given(patterns(), st.text(st.sampled_from("ab.é🙂ñ \n1,\u2003à"), max_size=8))
def test_a_match_ends_where_pythons_search_finds_one(pattern: str, text: str) -> None:
    if re.match(pattern, ""):
        with pytest.raises(ValueError, match="matches the empty text"):
            pattern_automaton(pattern)
        return
    found = accepted(pattern_automaton(pattern), text)
    begin = 0
    for k, character in enumerate(text):
        *within, last = found[begin : begin + len(character.encode())]
        assert last == (re.search(pattern, text[: k + 1]) is not None)
        assert within == [k > 0 and found[begin - 1]] * len(within), "no match ends within a character"
        begin += len(character.encode())


RANGES = [(0, 0x10FFFF), (0x7F, 0x80), (0x7FF, 0x800), (0xFFF0, 0x10010), (0x400, 0xE123), (0x1F600, 0x1F64F)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ranges_of_characters_are_those_of_their_bytes(low: int, high: int) -> None:
    paths = list(stop_pattern._utf8(low, high))
    for code in {low, high, *range(0, 0x110000, 997), 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000}:
        if not 0xD800 <= code <= 0xDFFF:
            text = chr(code).encode()
            reads = [len(path) == len(text) and all(a <= byte <= b for byte, (a, b) in zip(text, path, strict=True)) for path in paths]
            assert sum(reads) == (low <= code <= high)


@pytest.mark.parametrize("pattern", [r"(?a)\w", r"(?a)\W", r"(?as)[^\d].", r"(?x) a  b"])
def test_flags_of_a_pattern_are_kept(pattern: str) -> None:
    for text in ("é1ab", " 🙂", "1\na", "9\u0663b\n\n"):
        found = accepted(pattern_automaton(pattern), text)
        ends = [len(text[:k].encode()) - 1 for k in range(1, len(text) + 1)]
        assert [found[end] for end in ends] == [re.search(pattern, text[:k]) is not None for k in range(1, len(text) + 1)]


def test_automata_are_the_smallest() -> None:
    assert [len(pattern_automaton(pattern)) for pattern in (r"\n", "[ab]", "a|b|ab", "aa|ba", "(?:a|b)*c")] == [2, 2, 2, 3, 2]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "matches the empty text"),
        ("a*", "matches the empty text"),
        ("(", "must be a regular expression"),
        (r"\bword", "looks around or back"),
        ("a$", "looks around or back"),
        ("^a", "looks around or back"),
        ("a(?=b)", "looks around or back"),
        (r"(a)\1", "looks around or back"),
        ("(?i)a", "ignores case"),
        ("(?i:a)b", "ignores case"),
        (r"\w{9}\d{9}", "too large an automaton"),
        ("(?:a|b){200}{200}", "too large an automaton|multiple repeat"),
        ("a.{400}b", "too large an automaton"),
    ],
)
def test_what_ends_no_step_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StopPattern(pattern)
    with pytest.raises(ValueError, match="must be a string, got 3"):
        StopPattern(3)  # type: ignore[arg-type]


def test_a_pattern_is_no_string() -> None:
    pattern, text = StopPattern(r"\s"), r"\s"
    assert pattern == StopPattern(r"\s") and pattern != text and text != pattern and len({pattern, text}) == 2
    assert StepOptions(stop=(pattern, ";")).stop_strings == [";"] and repr(pattern) == r"StopPattern('\\s')"


TOKENS = ["", "a", "b", " ", " a", "a b", "é"[:1], ";", "a."]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=8))
def test_strings_and_patterns_together(ids: list[int]) -> None:
    automaton = StopAutomaton([token.encode() for token in TOKENS], (";", StopPattern(r"\s"), StopPattern("ab|bb")))
    text = "".join(TOKENS[i] for i in ids)
    assert bool(automaton.accepts(torch.tensor([*ids, PAD]))) == bool(re.search(r";|\s|ab|bb", text))


SYMBOLS = ["a", "b", ".", "$"]
LM = TabularLM(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), SYMBOLS, eos="$")


def test_steps_end_with_the_first_match() -> None:
    """Every step of the support ends where plain Python says, with the probability of its tokens; the reason is told."""
    stop = StopPattern(r"a\.|b{2}")
    fn = LLMStep(LM.start("a"), stop=stop, max_tokens=4)
    support = fn.enumerate_support()
    probs = LM.logits.softmax(-1)
    assert float(fn.log_prob(support).exp().sum()) == pytest.approx(1.0, abs=1e-6)
    for step, log_prob in zip(support.tolist(), fn.log_prob(support).tolist(), strict=True):
        tokens = [v for v in step if v != PAD]
        text = "".join(SYMBOLS[v] for v in tokens)
        ends = [k for k in range(1, len(text) + 1) if re.search(stop, text[:k]) or text[k - 1] == "$" or k == 4]
        assert ends == [len(text)]
        p = 1.0
        for before, v in zip([0, *tokens], tokens, strict=False):
            p *= float(probs[before, v])
        assert log_prob == pytest.approx(float(torch.tensor(p).log()), abs=1e-5)
        reason = LM.start("a").extend(torch.tensor(step), stop=stop).reasons[-1]
        by_match = bool(re.search(stop, text))
        assert reason == (StopReason.DELIMITER if by_match else StopReason.END_OF_TEXT if text[-1] == "$" else StopReason.LENGTH)


def test_positions_by_name() -> None:
    assert step_limits("\n\n", 9, None, "token") == ((), 1)
    assert step_limits("\n\n", 9, None, "word") == (StopPattern(r"\s"), 9)
    assert step_limits("\n\n", 9, None, "line") == (StopPattern(r"\n"), 9)
    assert step_limits("\n\n", 9, None, "[,}]") == (StopPattern("[,}]"), 9)
    for limits in ((";", 9, None), ("\n\n", 9, 3)):
        with pytest.raises(ValueError, match="every='word' says where steps end"):
            step_limits(*limits, "word")
    for every, meant in (("words", "word"), ("Line", "line"), ("tokens", "token")):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            step_limits("\n\n", 9, None, every)
        assert step_limits("\n\n", 9, None, f"(?:{every})") == (StopPattern(f"(?:{every})"), 9)
    assert step_limits("\n\n", 9, None, "END") == (StopPattern("END"), 9)
