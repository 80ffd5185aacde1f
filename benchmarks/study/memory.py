"""How much the tables of a process hold together."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

LIMIT = 768 << 20
"""Bytes for the tables of a process. Python, the networks and what a search works on take about as much again."""

ENTRY = 200
"""Bytes of an entry of a dictionary: key, value, and their places."""


class Table(Protocol):
    """What can be forgotten entry by entry."""

    @property
    def held(self) -> int:
        """Bytes of all entries."""
        ...

    def last_uses(self) -> NDArray[np.int64]:
        """:attr:`Memory.now` when each entry was last used."""
        ...

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the other entries; those that stay keep their order, but not their numbers."""
        ...


class Memory:
    """A bound on what some tables hold, in bytes; beyond it, what was used longest ago is forgotten.

    :param int limit: bytes.
    :ivar int now: counts the pieces of work; tables note it with what they use.
    :ivar int most: the most bytes that were held when room was made.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.now = self.most = 0
        self._tables: WeakSet[Table] = WeakSet()

    def join(self, table: Table) -> None:
        """Count a table."""
        self._tables.add(table)

    @property
    def held(self) -> int:
        """Bytes."""
        return sum(table.held for table in self._tables)

    def make_room(self, expected: int) -> bool:
        """Whether entries had to be forgotten, so that those that are used :attr:`now` have other numbers.

        Forgets until half of the limit is free, or what was not used just now is forgotten.

        :param int expected: bytes that the work will add.
        """
        held = self.held
        self.most = max(self.most, held)
        if held + expected <= self.limit:
            return False
        uses = [(table, table.last_uses()) for table in self._tables]
        held_by_use = np.zeros(self.now + 1)
        for table, last in uses:
            held_by_use += np.bincount(last, minlength=self.now + 1) * (table.held / max(1, len(last)))
        newer = np.cumsum(held_by_use[::-1])[::-1]  # bytes of entries used at a time or later
        oldest = min(int(np.sum(newer > min(self.limit // 2, self.limit - expected))), self.now)
        for table, last in uses:
            table.keep(last >= oldest)
        return True


PROCESS = Memory()
"""Of all tables that are not told otherwise."""
