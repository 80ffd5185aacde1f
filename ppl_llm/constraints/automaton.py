"""Languages given by a table of states and tokens."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from ..inference.util.checked import checked
from .base import Constraint, ConstraintStates, Vocabulary, packed, read


class Automaton(Constraint):
    """A deterministic finite automaton over token ids, for exact tests and small languages. State 0 is the start.

    :param Tensor table: ``[S, V]`` next state, -1 where the token may not follow.
    :param Tensor accepting: ``[S]`` bool, states in which the text may end.
    :raises ValueError: for tables of other shapes, or states that do not exist.
    """

    @checked
    def __init__(self, table: Tensor, accepting: Tensor) -> None:
        table, accepting = torch.as_tensor(table).long(), torch.as_tensor(accepting).bool()
        if table.dim() != 2 or accepting.shape != table.shape[:1]:
            raise ValueError(f"table must be [S, V] and accepting [S], got {tuple(table.shape)} and {tuple(accepting.shape)}")
        if len(table) == 0 or int(table.min()) < -1 or int(table.max()) >= len(table):
            raise ValueError(f"the table of an automaton with {len(table)} states must hold -1 .. {len(table) - 1}")
        self.table, self.accepting = table, accepting
        self._on_device: weakref.WeakKeyDictionary[Vocabulary, tuple[Tensor, Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Automaton(table={self.table.tolist()}, accepting={self.accepting.tolist()})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> AutomatonStates:
        if vocabulary not in self._on_device:
            self._on_device[vocabulary] = self._compiled(vocabulary)
        start = torch.zeros(len(tokens), dtype=torch.long, device=vocabulary.device)
        states = AutomatonStates(*self._on_device[vocabulary], start)
        read(states, tokens)
        return states

    def _compiled(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
        """The table with a last state from which nothing follows, its bitmasks and its accepting states, on the device."""
        num_states, size = self.table.shape
        if size != vocabulary.size:
            raise ValueError(f"the automaton's table has {size} tokens, the language model {vocabulary.size}")
        dead = torch.full((1, size), num_states)
        table = torch.cat([torch.where(self.table < 0, num_states, self.table), dead])
        accepting = torch.cat([self.accepting, torch.zeros(1, dtype=torch.bool)])
        return table.to(vocabulary.device), packed(table < num_states).to(vocabulary.device), accepting.to(vocabulary.device)


class AutomatonStates(ConstraintStates):
    """A state number for each sequence: everything is a lookup on the device.

    :param Tensor table: ``[S + 1, V]``; ``masks [S + 1, W]``; ``accepting [S + 1]``; ``current [A]``.
    """

    def __init__(self, table: Tensor, masks: Tensor, accepting: Tensor, current: Tensor) -> None:
        self._table, self._masks, self._accepting, self._current = table, masks, accepting, current

    def masks(self) -> Tensor:
        return self._masks[self._current]

    def may_end(self) -> Tensor:
        return self._accepting[self._current]

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        self._current = torch.where(alive, self._table[self._current, tokens], self._current)

    def select(self, rows: Tensor) -> AutomatonStates:
        return AutomatonStates(self._table, self._masks, self._accepting, self._current[rows])


class TokenSet(Constraint):
    """Texts of certain tokens only; they may end anywhere.

    :param allowed: the token ids that may be written, or
    :param banned: those that may not.
    :raises ValueError: unless one of the two is given.

    Example::

        SMC(model, 16, proposals=TokenSet(banned=[lm.tokenizer.convert_tokens_to_ids("<tool_call>")]))
    """

    @checked
    def __init__(self, *, allowed: Iterable[int] | None = None, banned: Iterable[int] | None = None) -> None:
        if (allowed is None) == (banned is None):
            raise ValueError("TokenSet needs either allowed or banned token ids")
        self.allowed = None if allowed is None else tuple(sorted(set(allowed)))
        self.banned = None if banned is None else tuple(sorted(set(banned)))

    def __repr__(self) -> str:
        return f"TokenSet(banned={self.banned})" if self.allowed is None else f"TokenSet(allowed={self.allowed})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> AutomatonStates:
        ids = self.banned if self.allowed is None else self.allowed
        assert ids is not None
        wrong = [i for i in ids if not 0 <= i < vocabulary.size]
        if wrong:
            raise ValueError(f"TokenSet: token ids must lie in 0 .. {vocabulary.size - 1}, got {wrong[:6]}")
        inside = torch.zeros(vocabulary.size, dtype=torch.bool)
        inside[list(ids)] = True
        allowed = ~inside if self.allowed is None else inside
        table = torch.stack([torch.where(allowed, 0, 1), torch.ones(vocabulary.size, dtype=torch.long)])
        masks, accepting = packed(table == 0), torch.tensor([True, False])
        device = vocabulary.device
        start = torch.zeros(len(tokens), dtype=torch.long, device=device)
        states = AutomatonStates(table.to(device), masks.to(device), accepting.to(device), start)
        read(states, tokens)
        return states
