"""Properties that every constraint must have: a mixin for the tests of each implementation."""

from __future__ import annotations

import itertools
import random

import torch
from torch import Tensor

from ppl_llm import PAD
from ppl_llm.constraints import Constraint, ConstraintStates, Vocabulary
from ppl_llm.constraints.base import unpacked

TOKENS = [b"a", b"b", b"ab", b"1", b"{", b"}", b'"', b":", b"", b"a1", b"", b"\xc3", b"\xa9", b" ", b"a"]
"""Merged tokens, two halves of a character, a token twice, a special token and the end of the text (id 10)."""
END = 10
SMALL = Vocabulary(TOKENS, (END,), torch.device("cpu"))


def padded(texts: list[list[int]]) -> Tensor:
    width = max(map(len, texts), default=0)
    return torch.tensor([text + [PAD] * (width - len(text)) for text in texts], dtype=torch.long).view(len(texts), width)


def allowed(states: ConstraintStates, vocabulary: Vocabulary) -> Tensor:
    """``[A, V]``: the tokens that may follow, the end of the text apart."""
    mask = unpacked(states.masks(), vocabulary.size).clone()
    mask[:, list(vocabulary.eos_ids)] = False
    if states.asks:
        for row, token in mask.nonzero().tolist():
            mask[row, token] = states.accepts(row, token)
    return mask


class ConstraintProperties:
    """
    :cvar vocabulary: of the texts.
    :cvar int depth: tokens of the texts that are compared with :meth:`member`, all of them.
    """

    vocabulary = SMALL
    depth = 3

    def constraint(self) -> Constraint:
        raise NotImplementedError

    def member(self, tokens: list[int]) -> bool:
        """Whether a text is in the language, said in another way."""
        raise NotImplementedError

    def texts(self) -> list[list[int]]:
        """Beginnings of different lengths: some that the language has, found by walking at random, and some that it has not."""
        rng, constraint = random.Random(1), self.constraint()
        found: list[list[int]] = [[], [0, 0, 0, 0, 0, 0], [5], [8]]
        for _ in range(6):
            text: list[int] = []
            for _ in range(rng.randrange(1, 7)):
                follow = allowed(constraint.states(self.vocabulary, padded([text])), self.vocabulary)[0].nonzero()[:, 0].tolist()
                if follow:
                    text = [*text, rng.choice(follow)]
            found.append(text)
        return found

    def states(self, texts: list[list[int]]) -> ConstraintStates:
        return self.constraint().states(self.vocabulary, padded(texts))

    def same(self, states: ConstraintStates, others: ConstraintStates) -> None:
        assert torch.equal(allowed(states, self.vocabulary), allowed(others, self.vocabulary))
        assert torch.equal(states.may_end(), others.may_end())

    def test_shapes(self) -> None:
        for number in (0, 1, 5):
            states = self.states([[]] * number)
            assert states.masks().shape == (number, self.vocabulary.words) and states.masks().dtype == torch.int32
            assert states.may_end().shape == (number,) and states.may_end().dtype == torch.bool

    def test_language(self) -> None:
        """Texts that can be written and ended are those of the language, up to ``depth`` tokens."""
        ordinary = [i for i in range(self.vocabulary.size) if i not in self.vocabulary.eos_ids]
        written: dict[tuple[int, ...], bool] = {}
        level: list[list[int]] = [[]]
        for _ in range(self.depth + 1):
            if not level:
                break
            states = self.states(level)
            follow, ends = allowed(states, self.vocabulary), states.may_end()
            written |= {tuple(text): bool(end) for text, end in zip(level, ends, strict=True)}
            level = [[*text, v] for text, row in zip(level, follow, strict=True) for v in row.nonzero()[:, 0].tolist()]
        for length in range(self.depth + 1):
            for text in itertools.product(ordinary, repeat=length):
                assert written.get(text, False) == self.member(list(text)), text
        assert any(written.values())

    def test_reading_is_advancing(self) -> None:
        texts = self.texts()
        states = self.states([[]] * len(texts))
        for column in padded(texts).unbind(1):
            states.advance(column.clamp(min=0), column != PAD)
        self.same(states, self.states(texts))

    def test_each_by_itself(self) -> None:
        texts = self.texts()
        together = self.states(texts)
        follow, ends = allowed(together, self.vocabulary), together.may_end()
        for row, text in enumerate(texts):
            alone = self.states([text])
            assert torch.equal(allowed(alone, self.vocabulary)[0], follow[row]) and bool(alone.may_end()) == bool(ends[row])

    def test_selected_states_are_independent(self) -> None:
        texts = self.texts()
        rows = torch.tensor([3, 0, 0, len(texts) - 1])
        states = self.states(texts)
        chosen = states.select(rows)
        self.same(chosen, self.states([texts[row] for row in rows]))
        chosen.advance(torch.tensor([0, 0, 4, 1]), torch.tensor([True, True, True, False]))
        self.same(states, self.states(texts))
        self.same(chosen, self.states([[*texts[3], 0], [0], [4], texts[-1]]))
        states.advance(torch.zeros(len(texts), dtype=torch.long), torch.ones(len(texts), dtype=torch.bool))
        self.same(chosen, self.states([[*texts[3], 0], [0], [4], texts[-1]]))

    def test_nothing_follows_a_token_that_may_not(self) -> None:
        texts = self.texts()
        follow = allowed(self.states(texts), self.vocabulary)
        wrong = [[*text, v] for text, row in zip(texts, follow, strict=True) for v in range(self.vocabulary.size) if not row[v]]
        wrong = [text for text in wrong if text[-1] not in self.vocabulary.eos_ids]
        states = self.states(wrong)
        assert wrong and not allowed(states, self.vocabulary).any() and not states.may_end().any()

    def test_says_what_it_is(self) -> None:
        assert repr(self.constraint()) == repr(self.constraint()) and "object at" not in repr(self.constraint())
