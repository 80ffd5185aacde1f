"""Constraints that need no package: the common properties, bitmasks, and mistakes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm.constraints import Automaton, Choices, Constraint, PerStep, Product, TokenSet, Vocabulary
from ppl_llm.constraints.base import packed, unpacked
from tests.helpers.constraint_properties import END, SMALL, TOKENS, ConstraintProperties


def text_of(tokens: list[int]) -> bytes:
    return b"".join(TOKENS[v] for v in tokens)


def even_table() -> torch.Tensor:
    """States: an even and an odd number of a (0) so far; b (1) stays; nothing else."""
    table = torch.full((2, len(TOKENS)), -1)
    table[0, 0], table[1, 0], table[0, 1], table[1, 1] = 1, 0, 0, 1
    return table


class TestAutomaton(ConstraintProperties):
    def constraint(self) -> Constraint:
        return Automaton(even_table(), torch.tensor([True, False]))

    def member(self, tokens: list[int]) -> bool:
        return set(tokens) <= {0, 1} and tokens.count(0) % 2 == 0


class TestAllowedTokens(ConstraintProperties):
    def constraint(self) -> Constraint:
        return TokenSet(allowed=[0, 8, 13])

    def member(self, tokens: list[int]) -> bool:
        return set(tokens) <= {0, 8, 13}


class TestBannedTokens(ConstraintProperties):
    depth = 2

    def constraint(self) -> Constraint:
        return TokenSet(banned=[5, 8])

    def member(self, tokens: list[int]) -> bool:
        return not {5, 8} & set(tokens)


class TestChoices(ConstraintProperties):
    choices = ("ab", "a", "a1 b", "é", "aab")

    def constraint(self) -> Constraint:
        return Choices(self.choices)

    def member(self, tokens: list[int]) -> bool:
        return all(TOKENS[v] for v in tokens) and text_of(tokens) in [each.encode() for each in self.choices]


class TestProduct(ConstraintProperties):
    def constraint(self) -> Constraint:
        return Automaton(even_table(), torch.tensor([True, False])) & Choices(["ab", "aab", "baa", "aa"]) & TokenSet(banned=[3])

    def member(self, tokens: list[int]) -> bool:
        return set(tokens) <= {0, 1} and text_of(tokens) in (b"aab", b"baa", b"aa")


def test_choices_are_a_set_of_texts() -> None:
    """Known by the same name whatever they are listed in, so that a run is resumed in another process."""
    for texts in (["b", "a"], {"a", "b"}, (text for text in "aba")):
        assert repr(Choices(texts)) == "Choices(['a', 'b'])"


def test_long_texts_are_cut_into_parts_no_longer_than_a_token() -> None:
    """The parts of a text of 100,000 characters are no more than 100,000 times the lengths that tokens have; all would be 5e9."""
    text = "ab" * 50_000
    states = Choices([text]).states(SMALL, torch.tensor([[0]]))
    assert unpacked(states.masks(), SMALL.size).nonzero()[:, 1].tolist() == [1]


def test_a_constraint_on_each_step_forgets_the_steps_before() -> None:
    states = PerStep(Choices(["ab"])).states(SMALL, torch.tensor([[0, 0, 1]]))
    assert unpacked(states.masks(), SMALL.size).nonzero()[:, 1].tolist() == [0, 2, 14]


@given(st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_bitmasks_are_read_as_they_are_written(size: int, seed: int) -> None:
    allowed = torch.rand(3, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks = packed(allowed)
    assert masks.shape == (3, -(-size // 32)) and torch.equal(unpacked(masks, size), allowed)
    for v in range(size):
        assert torch.equal((masks[:, v // 32] >> (v % 32)) & 1, allowed[:, v].int())


def test_bitmasks_are_unpacked_on_other_devices_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.Tensor):
        """A tensor that says it lies on an accelerator."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    masks = packed(torch.rand(4, 77, generator=torch.Generator().manual_seed(0)) < 0.5)
    shifts = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *args, device=None, **kwargs: shifts(*args, **kwargs))
    assert torch.equal(unpacked(masks.as_subclass(Elsewhere), 77).as_subclass(torch.Tensor), unpacked(masks, 77))


def test_the_end_of_the_text_is_a_mask_of_its_own() -> None:
    assert unpacked(SMALL.eos_mask, SMALL.size).nonzero()[:, 0].tolist() == [END]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Automaton(torch.zeros(3), torch.zeros(3)), r"table must be \[S, V\]"),
        (lambda: Automaton(torch.zeros(3, 2), torch.zeros(2)), r"accepting \[S\], got \(3, 2\) and \(2,\)"),
        (lambda: Automaton(torch.full((2, 2), 2), torch.zeros(2)), r"must hold -1 \.\. 1"),
        (lambda: TokenSet(), "either allowed or banned"),
        (lambda: TokenSet(allowed=[1], banned=[2]), "either allowed or banned"),
        (lambda: Choices("yes"), "texts must be a list"),
        (lambda: Choices(["yes", ""]), "not empty"),
        (lambda: Choices([]), "not empty"),
        (lambda: Choices(text for text in ()), "not empty"),
        (lambda: Choices(["a", "\ud800"]), "lone surrogate at 0"),
        (lambda: Choices(["x" * 1000, ""]), r"xxx\.\.\.$"),
        (lambda: Product(), "at least one"),
        (lambda: TokenSet(banned=[99]).states(SMALL, torch.zeros(1, 0)), r"0 \.\. 14, got \[99\]"),
        (lambda: Automaton(torch.zeros(2, 5), torch.ones(2)).states(SMALL, torch.zeros(1, 0)), "5 tokens, the language model 15"),
    ],
)
def test_mistakes_are_named(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


def test_the_vocabularys_words() -> None:
    assert [Vocabulary([b"x"] * size, (0,), torch.device("cpu")).words for size in (1, 32, 33)] == [1, 1, 2]
