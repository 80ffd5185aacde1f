"""Languages given by a Python function that is asked token by token."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..inference.util.checked import checked
from .base import Constraint, ConstraintStates, Vocabulary, read

_ANSWERS = 1 << 16
"""Answers of a predicate that are remembered."""

_utf8 = codecs.getincrementaldecoder("utf-8")


class Predicate(Constraint):
    """Texts that a function allows, asked only for tokens that are drawn.

    The next token is drawn by adaptive weighted rejection (Lipkin et al., arXiv 2504.05410): draw, ask, remove what is refused, draw
    again. Its weight is an unbiased estimate of the mass of what may follow.
    Weights that are estimates belong to a draw: algorithms that keep a trajectory, as ParticleGibbs does, refuse such a constraint.

    :param allows: of the text after the prompt, whether it may stand as the beginning of a text of the language. Called with complete
        characters only, never with a special token, and with the same answer for the same text.
    :param complete: of a text that ``allows`` allows and that does not end within a character, whether it may end; any may by default.
    :param str name: to tell it from others; the function's by default.

    Example::

        SMC(model, 16, proposals=Predicate(lambda text: "e" not in text))
    """

    asks = True

    @checked
    def __init__(self, allows: Callable[[str], bool], complete: Callable[[str], bool] | None = None, *, name: str | None = None) -> None:
        self.name = name or getattr(allows, "__qualname__", type(allows).__qualname__)
        self.allows = lru_cache(_ANSWERS)(lambda written: bool(allows(_text(written))))
        self.complete = lru_cache(_ANSWERS)(lambda written: _whole(written) and (complete is None or bool(complete(_text(written)))))

    def __repr__(self) -> str:
        return f"Predicate({self.name})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> PredicateStates:
        states = PredicateStates(self, vocabulary, [b""] * len(tokens))
        read(states, tokens)
        return states


def _text(written: bytes) -> str:
    """The complete characters of a text."""
    return _utf8("replace").decode(written)


def _whole(written: bytes) -> bool:
    """Whether a text does not end within a character."""
    decoder = _utf8("replace")
    decoder.decode(written)
    return decoder.getstate()[0] == b""


class PredicateStates(ConstraintStates):
    """What each sequence has written; ``None`` where that is not allowed."""

    asks = True

    def __init__(self, predicate: Predicate, vocabulary: Vocabulary, written: list[bytes | None]) -> None:
        self._predicate, self._vocabulary, self._written = predicate, vocabulary, list(written)

    def masks(self) -> Tensor:
        """Every token with bytes; :meth:`accepts` tells the rest."""
        living = torch.tensor([written is not None for written in self._written], dtype=torch.bool, device=self._vocabulary.device)
        return torch.where(living[:, None], self._vocabulary.text_mask, 0)

    def may_end(self) -> Tensor:
        ends = [written is not None and self._predicate.complete(written) for written in self._written]
        return torch.tensor(ends, dtype=torch.bool, device=self._vocabulary.device)

    def accepts(self, row: int, token: int) -> bool:
        return self._after(row, token) is not None

    def _after(self, row: int, token: int) -> bytes | None:
        before, added = self._written[row], self._vocabulary.token_bytes[token]
        if before is None or not added or not self._predicate.allows(before + added):
            return None
        return before + added

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for row, (token, lives) in enumerate(zip(tokens.tolist(), alive.tolist(), strict=True)):
            if lives:
                self._written[row] = self._after(row, token)

    def select(self, rows: Tensor) -> PredicateStates:
        return PredicateStates(self._predicate, self._vocabulary, [self._written[row] for row in rows.tolist()])
