"""A list of texts as a language."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..inference.util.checked import checked
from .base import Constraint, ConstraintStates, Vocabulary, encoded, read, shortened


class Choices(Constraint):
    """One of several texts, in any of the ways to write it with the model's tokens.

    :param texts: not empty.
    :raises ValueError: for no text, an empty one, or one with half a character (a lone surrogate).
    """

    @checked
    def __init__(self, texts: Iterable[str]) -> None:
        given = list(texts)
        if not given or not all(isinstance(text, str) and text for text in given):
            raise ValueError(f"Choices needs a list of texts that are not empty, got {shortened(given)}")
        # In one order, by which a run that is resumed knows them in another process.
        self.texts = tuple(sorted(set(given)))
        self._bytes = [encoded(text) for text in self.texts]
        self._tries: weakref.WeakKeyDictionary[Vocabulary, _Trie] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Choices({list(self.texts)})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ChoicesStates:
        if vocabulary not in self._tries:
            self._tries[vocabulary] = _Trie(self._bytes, vocabulary)
        states = ChoicesStates(self._tries[vocabulary], [b""] * len(tokens))
        read(states, tokens)
        return states


class _Trie:
    """What may follow each beginning of the texts; beginnings that nobody has come to are not looked at.

    :param list texts: as bytes.
    """

    def __init__(self, texts: list[bytes], vocabulary: Vocabulary) -> None:
        self.texts, self.device = frozenset(texts), vocabulary.device
        self._sorted = sorted(self.texts)
        self.token_bytes = vocabulary.token_bytes
        self._vocabulary = weakref.proxy(vocabulary)
        self._ids: dict[bytes, list[int]] = {}
        self._longest = longest = max(map(len, vocabulary.token_bytes))
        parts = {text[a:b] for text in texts for a in range(len(text)) for b in range(a + 1, min(len(text), a + longest) + 1)}
        for i, token in enumerate(vocabulary.token_bytes):
            if token in parts:
                self._ids.setdefault(token, []).append(i)
        self._masks: dict[bytes, Tensor] = {}

    def _from(self, written: bytes) -> Iterator[bytes]:
        """The texts with a beginning."""
        for k in range(bisect_left(self._sorted, written), len(self._sorted)):
            if not self._sorted[k].startswith(written):
                return
            yield self._sorted[k]

    def follows(self, written: bytes) -> bool:
        return any(True for _ in self._from(written))

    def mask(self, written: bytes | None) -> Tensor:
        """The bitmask ``[W]`` after a beginning; nothing follows ``None``."""
        key = b"" if written is None else written
        if written is None or key not in self._masks:
            rests = set() if written is None else {text[len(key) : len(key) + self._longest] for text in self._from(key)}
            ends = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
            mask: Tensor = self._vocabulary.mask([i for part in ends for i in self._ids.get(part, ())])
            if written is None:
                return mask
            self._masks[key] = mask
        return self._masks[key]


class ChoicesStates(ConstraintStates):
    """What each sequence has written; ``None`` where that begins no text."""

    def __init__(self, trie: _Trie, written: Sequence[bytes | None]) -> None:
        self._trie, self._written = trie, list(written)

    def masks(self) -> Tensor:
        distinct = {written: k for k, written in enumerate(dict.fromkeys(self._written))}
        if not distinct:
            return self._trie.mask(None)[None][:0]
        table = torch.stack([self._trie.mask(written) for written in distinct])
        return table[torch.tensor([distinct[written] for written in self._written], device=table.device)]

    def may_end(self) -> Tensor:
        return torch.tensor([written in self._trie.texts for written in self._written], dtype=torch.bool, device=self._trie.device)

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for row, (token, lives) in enumerate(zip(tokens.tolist(), alive.tolist(), strict=True)):
            before = self._written[row]
            if not lives or before is None:
                continue
            added = self._trie.token_bytes[token]
            self._written[row] = before + added if added and self._trie.follows(before + added) else None

    def select(self, rows: Tensor) -> ChoicesStates:
        return ChoicesStates(self._trie, [self._written[row] for row in rows.tolist()])
