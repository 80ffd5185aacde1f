"""Context against a plain-Python model: a list of token tuples per sequence."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ppl_llm import PAD, StopReason, TabularLM, reasoning
from ppl_llm.context_cache import CacheEntry
from ppl_llm.inference import Enumeration
from tests.helpers.reasoning import LM as TABLE
from tests.helpers.reasoning import SYMBOLS

LM = TabularLM(torch.zeros(4, 4), ["a", "b", ";", "$"], eos="$")
WIDTH = 3
STEPS = [(2,), (3,), (0, 2), (1, 2), (0, 3), (0, 1, 2), (1, 1, 3), (0, 0, 0), (1, 0, 1)]


def reason_of(step: tuple[int, ...]) -> StopReason:
    if not step:
        return StopReason.FINISHED
    return StopReason.END_OF_TEXT if step[-1] == 3 else StopReason.DELIMITER if step[-1] == 2 else StopReason.LENGTH


class ContextMachine(RuleBasedStateMachine):
    """Random extend / reorder / index operations on particles times problems."""

    @initialize(sequences=st.integers(1, 4), problems=st.lists(st.sampled_from(["a", "ba", "bba"]), min_size=1, max_size=3))
    def start(self, sequences: int, problems: list[str]) -> None:
        root = LM.start(problems)
        self.context = root.expand((sequences, len(problems)))
        self.grid = [[(LM.start(p).tokens.tolist(), [], p) for p in problems] for _ in range(sequences)]
        self.context.cache_entries["mark"] = CacheEntry(None, {"number": torch.arange(sequences * len(problems)).view(sequences, -1)})
        self.marks = self.context.cache_entries["mark"].tensors["number"].tolist()

    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        rows = []
        for line in self.grid:
            for tokens, steps, _ in line:
                finished = any(reason_of(s) == StopReason.END_OF_TEXT for s in steps)
                step = () if finished else data.draw(st.sampled_from(STEPS))
                rows.append(list(step) + [PAD] * (WIDTH - len(step)))
                tokens += step
                steps.append(step)
        value = torch.tensor(rows).view(*self.context.batch_shape, WIDTH)
        before = self.context
        self.context = before.extend(value, stop=";")
        assert before.num_steps == self.context.num_steps - 1  # the old one is as it was

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        n, p = self.context.batch_shape
        index = torch.tensor([[data.draw(st.integers(0, n - 1)) for _ in range(p)] for _ in range(n)])
        self.context = self.context.reorder(index)

        def copy(i: int, j: int) -> tuple[list[int], list[tuple[int, ...]], str]:
            tokens, steps, problem = self.grid[int(index[i, j])][j]
            return list(tokens), list(steps), problem

        self.marks = [[self.marks[int(index[i, j])][j] for j in range(p)] for i in range(n)]
        self.grid = [[copy(i, j) for j in range(p)] for i in range(n)]

    @invariant()
    def equals_the_lists(self) -> None:
        context = self.context
        assert context.problem == [[problem for *_, problem in line] for line in self.grid]
        assert context.cache_entries["mark"].tensors["number"].tolist() == self.marks
        for i, line in enumerate(self.grid):
            for j, (tokens, steps, problem) in enumerate(line):
                sequence = context[i][j]
                assert sequence.tokens[: int(sequence.lengths)].tolist() == tokens
                assert (sequence.tokens[int(sequence.lengths) :] == PAD).all()
                assert sequence.reasons.tolist() == [reason_of(s) for s in steps]
                assert bool(sequence.done) == any(reason_of(s) == StopReason.END_OF_TEXT for s in steps)
                assert bool(sequence.advanced) == bool(steps and steps[-1])
                assert sequence.steps == [LM.decode(list(s)) for s in steps if s]
                assert sequence.text == LM.decode(tokens[len(problem) :])
                assert (sequence.ends - sequence.step_starts).tolist() == [len(s) for s in steps]


TestContext = ContextMachine.TestCase
TestContext.settings = settings(max_examples=25, stateful_step_count=8, deadline=None, derandomize=True)


def test_a_single_sequence_spreads_over_particles() -> None:
    root = LM.start("ba")
    assert root.batch_shape == () and root.reorder(torch.tensor([1, 0])) is root
    grown = root.extend(torch.tensor([[0, 2, PAD], [3, PAD, PAD]]), stop=";")
    assert grown.batch_shape == (2,) and len(grown) == 2
    assert grown.text == ["a;", ""] and grown.done.tolist() == [False, True]
    with pytest.raises(TypeError, match="single sequence"):
        len(root)
    with pytest.raises(IndexError, match="no batch dimension"):
        root[0]
    assert repr(grown) == "Context(sequences (2,), 1 steps, 1 of 2 done)"


def test_a_full_context_finishes_the_sequence() -> None:
    lm = TabularLM(torch.zeros(4, 4), ["a", "b", ";", "$"], eos="$")
    lm.max_length = 3
    grown = lm.start("a").extend(torch.tensor([[0, 0, PAD], [0, 2, PAD], [0, 3, PAD], [2, PAD, PAD]]), stop=";")
    assert grown.reasons[:, 0].tolist() == [StopReason.CONTEXT_FULL, StopReason.CONTEXT_FULL, StopReason.END_OF_TEXT, StopReason.DELIMITER]
    assert grown.done.tolist() == [True, True, True, False]


def test_a_pattern_finishes_the_sequence() -> None:
    grown = LM.start("a").extend(torch.tensor([[1, 1, 2], [0, 1, 2], [1, 1, 3]]), stop=";", finish="bb")
    assert grown.reasons[:, 0].tolist() == [StopReason.PATTERN, StopReason.DELIMITER, StopReason.END_OF_TEXT]
    assert grown.done.tolist() == [True, False, True]


@pytest.mark.parametrize("final", [("b;a",), (";",), ("b;ab", ";a"), ("ab", "b"), ("nowhere",)])
def test_a_final_stop_ends_a_text_as_if_it_were_written_token_by_token(final: tuple[str, ...]) -> None:
    """Exactly: the distribution of texts, also where the stop lies across steps and the rest of its step is thrown away."""
    probs = TABLE.logits.softmax(-1)
    expected: defaultdict[str, float] = defaultdict(float)

    def grow(text: str, last: int, in_step: int, steps: int, p: float) -> None:
        for v, symbol in enumerate(SYMBOLS):
            grown, mass = text + symbol.strip("$"), p * float(probs[last, v])
            stopped = [(len(grown) - len(stop)) for stop in final if grown.endswith(stop)]
            over = v == 2 or in_step + 1 == 2
            if stopped:
                expected[grown[: min(stopped)]] += mass
            elif v == 3 or (over and steps + 1 == 3):
                expected[grown] += mass
            else:
                grow(grown, v, 0 if over else in_step + 1, steps + over, mass)

    grow("", 0, 0, 0, 1.0)
    model = reasoning(TABLE, None, stop=";", max_tokens=2, max_steps=3, final_stop=final, early_exit=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = Enumeration(model).run("a").marginal(lambda context: context.text)
    finally:
        torch.set_default_dtype(before)
    assert found.probs == pytest.approx(dict(expected), abs=1e-10)


def test_a_delimiter_at_the_last_place_is_no_length_stop() -> None:
    grown = LM.start("a").extend(torch.tensor([[0, 0, 2], [0, 0, 0]]), stop=";")
    assert grown.reasons[:, 0].tolist() == [StopReason.DELIMITER, StopReason.LENGTH]


def test_cache_entries_that_do_not_fit_are_forgotten() -> None:
    root = LM.start("a")
    root.cache_entries["mark"] = CacheEntry(None, {"row": torch.zeros(5, dtype=torch.long)})
    assert "mark" in root.extend(torch.tensor([[2]] * 5), stop=";").cache_entries
    assert "mark" not in root.extend(torch.tensor([[2]] * 4), stop=";").cache_entries
