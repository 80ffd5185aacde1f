"""Steps of Markdown: the automaton against a plain scan of the text, and the distribution of the steps that it ends."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppl_llm import PAD, SMC, LLMStep, StopReason, TabularLM, TabularReward, reasoning
from ppl_llm.context import Context
from ppl_llm.inference import Enumeration
from ppl_llm.lm import stopping
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.markdown import MARKDOWN, markdown_automaton
from ppl_llm.lm.stopping import StopAutomaton, token_bytes
from tests.helpers.plain_markdown import end_of_step, steps_of
from tests.helpers.tiny_models import language_model, tokenizer

PIECES = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "\r\n",
    "a",
    "é",
    "`",
    "``",
    "```",
    "````",
    "~",
    "~~~",
    "$",
    "$$",
    "\\",
    "\\[",
    "\\]",
    "[",
    "]",
    "```py\n",
    "x\n",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)

EXAMPLES = [
    ("First: 2 + 3 = 5\n\nThen", "First: 2 + 3 = 5\n\n"),
    ("\n\nLate\n \t\nThen", "\n\nLate\n \t\n"),
    ("a\r\n\r\nb", "a\r\n\r\n"),
    ("Run\n```python\nx = 1\n\ny = 2\n```\n\nDone", "Run\n```python\nx = 1\n\ny = 2\n```\n\n"),
    ("1. Run: ```python\nx\n\ny\n   ```\n\nDone", "1. Run: ```python\nx\n\ny\n   ```\n\n"),
    ("````md\n```\n\n```\n\n````\n\nDone", "````md\n```\n\n```\n\n````\n\n"),
    ("~~~\n\n```\n\n~~~\n\nDone", "~~~\n\n```\n\n~~~\n\n"),
    ("Use ```x``` here\n\nDone", "Use ```x``` here\n\n"),
    ("So\n\\[\n\nx = 1\n\n\\]\n\nDone", "So\n\\[\n\nx = 1\n\n\\]\n\n"),
    ("So $$x\n\n= 1$$ holds\n\nDone", "So $$x\n\n= 1$$ holds\n\n"),
    ("It costs \\$$5 and $6\n\nDone", "It costs \\$$5 and $6\n\n"),
    ("The shell has `$$` as well\n\nDone", "The shell has `$$` as well\n\n"),
    ("A \\\\[2pt] break\n\nDone", "A \\\\[2pt] break\n\n"),
    ("\\[ a \\\\[2pt] b \\]\n\nDone", "\\[ a \\\\[2pt] b \\]\n\n"),
    ("```\nnever closed\n\nx", None),
]


def ended(automaton: StopAutomaton, tokens: list[int]) -> bool:
    return bool(automaton.accepts(torch.tensor([*tokens, PAD])))


@pytest.mark.parametrize(("text", "step"), EXAMPLES)
def test_texts_as_models_write_them(text: str, step: str | None) -> None:
    """The end of the first step by hand, by the plain scan, and by the automaton on single bytes."""
    assert end_of_step(text) == (None if step is None else len(step))
    automaton, found = StopAutomaton([bytes([i]) for i in range(256)], MARKDOWN), None
    written = text.encode()
    for length in range(len(written) + 1):
        if found is None and ended(automaton, list(written[:length])):
            found = written[:length].decode()
    assert found == step


def split(text: bytes, cuts: list[int]) -> list[bytes]:
    """A text cut into tokens at some places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def first_disagreement(text: str, cuts: list[int]) -> int | None:
    """After which token the automaton and the scan differ on whether the step has ended, if they do."""
    tokens = split(text.encode(), cuts)
    automaton = StopAutomaton([*tokens, b""], MARKDOWN)
    for n in range(len(tokens) + 1):
        read = b"".join(tokens[:n]).decode(errors="ignore")
        if ended(automaton, list(range(n))) != (end_of_step(read) is not None):
            return n
    return None


@settings(max_examples=600, derandomize=True, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200), max_size=12))
def test_the_automaton_ends_steps_where_a_plain_scan_does(text: str, cuts: list[int]) -> None:
    assert first_disagreement(text, cuts) is None


def _moved(name: str, byte: bytes, target: str) -> NDArray[np.int64]:
    """The automaton with one wrong transition: the states that texts lead to are asked of the right one."""
    right = markdown_automaton()

    def after(text: str) -> int:
        state = 0
        for each in text.encode():
            state = int(right[state, each])
        return state

    wrong = right.copy()
    wrong[after(name), byte[0]] = after(target)
    return wrong


def _as_plain_stop() -> NDArray[np.int64]:
    return stopping._byte_automaton([b"\n\n"])


MORE = ["````\n```\n\n\n", "```\na```\n\nx\n", "~~~\na`\n\nb", "a\n \n", "$$a$\n\n$$\n\n", "a\\[\n\n\\]\n\n"]
"""Further texts on which a wrong automaton errs."""

WRONG = {
    "every blank line ends a step": _as_plain_stop,
    "an empty line before any text ends a step": lambda: _moved("", b"\n", "a\n\n"),
    "a line of spaces is no blank line": lambda: _moved("a\n", b" ", "a"),
    "a fence is closed by fewer marks": lambda: _moved("````\n```", b"\n", "a\n"),
    "a fence is closed behind text": lambda: _moved("```\na", b"`", "```\n`"),
    "a fence is closed by the other mark": lambda: _moved("~~~\n``", b"`", "~~~\n~~~"),
    "a fence is never closed": lambda: _moved("```\n```", b"\n", "```\n"),
    "inline code of three marks opens a fence": lambda: _moved("```a", b"`", "```a"),
    "an escaped dollar is a mark": lambda: _moved("\\", b"$", "$"),
    "an escaped bracket is a mark": lambda: _moved("a\\", b"\\", "a\\"),
    "display mathematics ends at one dollar": lambda: _moved("$$a", b"$", "a"),
    "a span of code hides nothing": lambda: _moved("`", b"$", "$"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rejects_wrong_automata(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong automaton disagrees with the scan on some text of the property above or an example."""
    monkeypatch.setattr(stopping, "markdown_automaton", WRONG[name])
    assert any(first_disagreement(text, list(range(len(text)))) is not None for text in (*(text for text, _ in EXAMPLES), *MORE))


def test_goes_together_with_strings() -> None:
    """The first of the two to come ends the step."""
    tokens = [b"a\n", b"\n", b"</think>", b"```\n", b"</th", b"ink>"]
    automaton = StopAutomaton(tokens, (MARKDOWN, "</think>"))
    for ids in ([0, 1], [0, 2], [3, 1, 2], [3, 4, 5]):
        assert ended(automaton, ids) and not ended(automaton, ids[:-1])
    assert not ended(automaton, [3, 0, 1])


def test_agrees_with_the_text_that_a_tokenizer_decodes() -> None:
    table = token_bytes(tokenizer(), len(tokenizer()))
    automaton = StopAutomaton(table, MARKDOWN)
    for text, step in EXAMPLES:
        ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert ended(automaton, ids) == (step is not None)


SYMBOLS = ["a", "\n", "```", "$$", "<end>"]


def make_lm(seed: int = 0, symbols: list[str] = SYMBOLS) -> TabularLM:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(symbols), len(symbols), generator=generator, dtype=torch.float64)
    return TabularLM(logits, symbols, eos=symbols[-1])


def continued(lm: TabularLM, pieces: list[str], longest: int) -> Context:
    """The context after the steps of a text, as the plain scan cuts them; a last step that is open is left out."""
    context = lm.start("a")
    for step, _ in steps_of(pieces, longest):
        if len(step) == longest or end_of_step("".join(step)) is not None:
            ids = [lm.symbols.index(piece) for piece in step]
            context = context.extend(torch.tensor(ids + [PAD] * (longest - len(ids))), stop=MARKDOWN)
    return context


def check_steps(pieces: list[str], longest: int) -> None:
    """Reasons of given steps, and which steps are possible."""
    lm, options = make_lm(), StepOptions(stop=MARKDOWN, max_tokens=longest)
    context = lm.start("a")
    for step, delimited in steps_of(pieces, longest):
        whole = delimited or len(step) == longest
        ids = [lm.symbols.index(piece) for piece in step]
        given_step = torch.tensor(ids + [PAD] * (longest - len(ids)))
        assert bool(lm.step_log_prob(context, given_step, options) > -torch.inf) == whole
        for shorter in range(1, len(ids)):
            cut = torch.tensor(ids[:shorter] + [PAD] * (longest - shorter))
            assert lm.step_log_prob(context, cut, options) == -torch.inf
        if not whole:
            return
        context = context.extend(given_step, stop=MARKDOWN)
        assert int(context.reasons[-1]) == (StopReason.DELIMITER if delimited else StopReason.LENGTH)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(SYMBOLS[:-1]), max_size=14), st.integers(2, 5))
def test_what_is_open_stays_open_where_a_step_is_cut(pieces: list[str], longest: int) -> None:
    """Texts that ``max_tokens`` cuts within fences and equations."""
    check_steps(pieces, longest)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(SYMBOLS[:-1]), max_size=9), st.integers(1, 4), st.integers(0, 3))
def test_probabilities_sum_to_one(pieces: list[str], longest: int, seed: int) -> None:
    """Also where the step begins within a fence or an equation that a step before it has opened."""
    step = LLMStep(continued(make_lm(seed), pieces, longest), stop=MARKDOWN, max_tokens=longest)
    values = step.enumerate_support()
    assert len({tuple(value) for value in values.tolist()}) == len(values)
    assert step.log_prob(values).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_sequences_that_begin_in_different_states_are_enumerated_together() -> None:
    lm = make_lm()
    both = torch.tensor([[2, 1], [0, 0]])  # a fence is open in the first
    context = lm.start("a").expand((2,)).extend(both, stop=MARKDOWN)
    step = LLMStep(context, stop=MARKDOWN, max_tokens=3)
    values = step.enumerate_support()
    torch.testing.assert_close(step.log_prob(values).exp().sum(0), torch.ones(2), atol=1e-5, rtol=0)
    blank = torch.tensor([0, 1, 1])
    assert step.log_prob(blank.expand(2, 3)).isfinite().all()  # three tokens: as long as it may be, or a delimiter
    assert [int(reason) for reason in context.extend(blank.expand(2, 3), stop=MARKDOWN).reasons[:, -1]] == [3, 1]


def test_samples_are_cut_where_the_scan_cuts_them_and_weigh_what_they_should() -> None:
    """2,000 texts of steps of five tokens at most: steps equal those of the scan, log-probabilities those of the whole text."""
    lm, options = make_lm(1), StepOptions(stop=MARKDOWN, max_tokens=5)
    pyro.set_rng_seed(0)
    context = lm.start("a").expand((2_000,))
    total = torch.zeros(2_000)
    for _ in range(4):
        tokens, log_probs = lm.sample_step(context, context.batch_shape, options)
        torch.testing.assert_close(lm.step_log_prob(context, tokens, options), log_probs, atol=1e-6, rtol=0)
        context, total = context.extend(tokens, stop=MARKDOWN), total + log_probs
    table = lm.logits.log_softmax(-1)
    cut, all_steps = 0, context.steps
    for n in range(2_000):
        ids = context.tokens[n, : int(context.lengths[n])].tolist()
        assert float(total[n]) == pytest.approx(float(table[ids[:-1], ids[1:]].sum()), abs=1e-4)
        written = [lm.symbols[i] for i in ids[1:] if i != 4]
        expected = ["".join(step) for step, _ in steps_of(written, 5)]
        found = [text for text in all_steps[n] if text]
        assert found == expected[: len(found)] and len(expected) - len(found) in (0, 1)
        cut += bool((context.reasons[n] == StopReason.LENGTH).any())
    assert cut > 300  # the states that are carried over matter


def test_a_prompt_that_has_opened_a_fence() -> None:
    """The answer begun in the prompt is read from its beginning, step by step."""
    lm = language_model()
    prefills = ["Run\n\n```python\n", "Run\n\nthis ", ""]
    contexts = [
        lm.start([{"role": "user", "content": "12 + 30"}, *([{"role": "assistant", "content": text}] if text else [])]) for text in prefills
    ]
    blank = torch.tensor(lm.tokenizer("x = 1\n\n", add_special_tokens=False)["input_ids"])
    reasons = [int(context.extend(blank, stop=MARKDOWN).reasons[-1]) for context in contexts]
    assert reasons == [StopReason.LENGTH, StopReason.DELIMITER, StopReason.DELIMITER]


def model(lm: TabularLM) -> Any:
    return reasoning(lm, TabularReward(torch.tensor([0.5, -0.5, 1.0, 0.0, 0.3])), max_steps=3, stop=MARKDOWN, max_tokens=2)


def test_evidence_against_enumeration() -> None:
    """SMC with 200,000 particles: the log of the evidence is within five standard errors of the enumerated one (false alarm 6e-7)."""
    lm = make_lm(2)
    exact = Enumeration(model(lm)).run("a").log_evidence
    pyro.set_rng_seed(0)
    islands = [float(SMC(model(lm), 10_000).run("a").log_evidence) for _ in range(20)]
    mean, error = np.mean(np.exp(islands)), np.std(np.exp(islands), ddof=1) / math.sqrt(20)
    assert abs(mean - math.exp(exact)) < 5 * error and error < 0.01 * math.exp(exact)


def test_a_state_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: every step begins as a text does."""
    monkeypatch.setattr(
        StopAutomaton, "start", lambda self, context: torch.zeros(context.batch_shape, dtype=torch.int32, device=context.tokens.device)
    )
    with pytest.raises(AssertionError):
        check_steps(["a", "a", "\n", "\n"], 2)
    with pytest.raises(AssertionError):
        test_a_prompt_that_has_opened_a_fence()


def test_automata_of_large_vocabularies_are_small() -> None:
    """Forty-six states, whatever the vocabulary."""
    assert len(markdown_automaton()) == 46
    automaton = StopAutomaton(token_bytes(tokenizer(), len(tokenizer())), MARKDOWN)
    assert automaton.table.shape == (46, len(tokenizer())) and copy.copy(automaton).accept == 45
