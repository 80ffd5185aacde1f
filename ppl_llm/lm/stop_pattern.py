"""Delimiters given by a regular expression, as automata over the bytes of a text."""

from __future__ import annotations

import re
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_STATES = 256
"""Of an automaton; tables have a row of the vocabulary's size for each."""

_MOST_BEFORE = 1024
"""States before those that nothing tells apart become one."""

_MOST_NODES = 20_000

Ranges = list[tuple[int, int]]
"""Code points or bytes, both ends included."""


class StopPattern(str):
    """A regular expression as a delimiter: a step ends with the token that completes a match, the first one in the step.

    Give it wherever a stop string goes, alone or among others: ``LLMStep(ctx, stop=StopPattern(r"[.!?]\\s"))``. It is searched for in the
    text of the step, in Python's syntax.

    :raises ValueError: for what is no regular expression; one that matches the empty text; one that looks around or back (``^``, ``$``,
        ``\\b``, ``(?=``, ``\\1``), as a step is over with the last character of its match; case-insensitive ones; and ones with a very
        large automaton, e.g. with ``\\w`` of all scripts: put ``(?a)`` before it.

    Example::

        LLMStep(ctx, stop=StopPattern(r"[,}]"))  # a step is a field of a JSON object
    """

    def __new__(cls, pattern: str) -> StopPattern:
        if not isinstance(pattern, str):
            raise ValueError(f"a stop pattern must be a string, got {pattern!r}")
        new = super().__new__(cls, pattern)
        pattern_automaton(str(pattern))
        return new

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StopPattern) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((StopPattern, str(self)))

    def __repr__(self) -> str:
        return f"StopPattern({str.__repr__(self)})"


UNITS = {"word": r"\s", "line": r"\n"}
"""What ends a word and a line."""


def position_pattern(every: str) -> str:
    """The regular expression of positions: of ``word``, ``line``, or as it is given.

    :raises ValueError: for what looks like one of the words, and would be searched for as a text.
    """
    if every not in UNITS and every.isalpha() and (near := get_close_matches(every.lower(), ("token", *UNITS), 1, 0.8)):
        raise ValueError(f"{every!r} is a regular expression for this very text; did you mean {near[0]!r}? The text is '(?:{every})'")
    return UNITS.get(every, every)


@cache
def pattern_automaton(pattern: str) -> NDArray[np.int64]:
    """The smallest automaton that comes to its last state where a match ends, searching from the beginning.

    :returns: ``[states, 256]`` next state; state 0 is the start, the last one accepts and absorbs.
    :raises ValueError: see :class:`StopPattern`.
    """
    try:
        tree, flags = parser.parse(pattern), re.compile(pattern).flags
    except re.error as error:
        raise ValueError(f"a stop pattern must be a regular expression, got {pattern!r}: {error}") from error
    if flags & re.IGNORECASE:
        raise ValueError(f"the stop pattern {pattern!r} ignores case; write [aA] for letters of either case")
    if re.compile(pattern).match(""):
        raise ValueError(f"the stop pattern {pattern!r} matches the empty text, so that a step would end before it begins")
    nodes = _Nodes(pattern, flags)
    end = nodes.add(tree, 0)
    smallest = _smallest(*_deterministic(nodes, end))
    if len(smallest) > _MOST_STATES:
        raise nodes.too_large()
    return smallest


class _Nodes:
    """A nondeterministic automaton over bytes. Node 0 is the start.

    :ivar list free: of each node those that it leads to without a byte.
    :ivar list arcs: of each node triples of first byte, last byte and the node after it.
    """

    def __init__(self, pattern: str, flags: int) -> None:
        self.pattern, self.flags = pattern, flags
        self.free: list[list[int]] = [[]]
        self.arcs: list[list[tuple[int, int, int]]] = [[]]

    def too_large(self) -> ValueError:
        return ValueError(f"the stop pattern {self.pattern!r} has too large an automaton; repeat less, or put (?a) before it")

    def new(self) -> int:
        if len(self.free) == _MOST_NODES:
            raise self.too_large()
        self.free.append([])
        self.arcs.append([])
        return len(self.free) - 1

    def add(self, tree: Iterable[tuple[Any, Any]], begin: int) -> int:
        """Nodes that read a sequence of Python's syntax tree from ``begin``: the node after it."""
        for op, given in tree:
            begin = self._add_one(op, given, begin)
        return begin

    def _add_one(self, op: Any, given: Any, begin: int) -> int:
        if op is ops.SUBPATTERN:
            _, more, fewer, inner = given
            if more & re.IGNORECASE:
                raise ValueError(f"the stop pattern {self.pattern!r} ignores case; write [aA] for letters of either case")
            before, self.flags = self.flags, (self.flags | more) & ~fewer
            end = self.add(inner, begin)
            self.flags = before
            return end
        if op is ops.BRANCH:
            end = self.new()
            for branch in given[1]:
                self.free[self.add(branch, begin)].append(end)
            return end
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            least, most, inner = given
            return self._repeat(least, most, inner, begin)
        end = self.new()
        for low, high in self._characters(op, given):
            for path in _utf8(low, high):
                node = begin
                for first, last in path[:-1]:
                    after = self.new()
                    self.arcs[node].append((first, last, after))
                    node = after
                self.arcs[node].append((*path[-1], end))
        return end

    def _repeat(self, least: int, most: Any, inner: Any, begin: int) -> int:
        for _ in range(least):
            begin = self.add(inner, begin)
        end = self.new()
        self.free[begin].append(end)
        if most is ops.MAXREPEAT:
            loop = self.new()
            self.free[begin].append(loop)
            after = self.add(inner, loop)
            self.free[after] += [loop, end]
            return end
        for _ in range(most - least):
            begin = self.add(inner, begin)
            self.free[begin].append(end)
        return end

    def _characters(self, op: Any, given: Any) -> Ranges:
        """The code points that one character of the pattern may be."""
        if op is ops.LITERAL:
            return [(given, given)]
        if op is ops.NOT_LITERAL:
            return _others([(given, given)])
        if op is ops.ANY:
            return _others([] if self.flags & re.DOTALL else [(10, 10)])
        if op is ops.RANGE:
            return [given]
        if op is ops.CATEGORY:
            return _category(_CATEGORIES[given], self.flags & re.ASCII)
        if op is ops.IN:
            negated = given[0][0] is ops.NEGATE
            found = [each for one in given[negated:] for each in self._characters(*one)]
            return _others(found) if negated else found
        raise ValueError(
            f"the stop pattern {self.pattern!r} looks around or back ({str(op).lower()}), but a step is over with the last character of "
            "its match: write the characters themselves, e.g. \\s or [.!?] in place of \\b or $"
        )


_CATEGORIES = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}
_SURROGATES = (0xD800, 0xDFFF)
"""No characters of a text."""


@cache
def _category(escape: str, ascii_only: int) -> Ranges:
    everything = "".join(chr(c) for c in range(sys.maxunicode + 1) if not _SURROGATES[0] <= c <= _SURROGATES[1])
    found = [match[0] for match in re.finditer(f"(?:{escape})+", everything, ascii_only)]
    return [(ord(run[0]), ord(run[-1])) for run in found]


def _others(ranges: Ranges) -> Ranges:
    """All code points but these."""
    found, begin = [], 0
    for low, high in sorted([*ranges, (sys.maxunicode + 1, sys.maxunicode + 1)]):
        if begin < low:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return found


def _utf8(low: int, high: int) -> Iterable[Ranges]:
    """The UTF-8 texts of code points, as sequences of byte ranges."""
    for least, most, length in ((0, 0x7F, 1), (0x80, 0x7FF, 2), (0x800, _SURROGATES[0] - 1, 3), (_SURROGATES[1] + 1, 0xFFFF, 3)):
        yield from _of_length(max(low, least), min(high, most), length)
    yield from _of_length(max(low, 0x10000), high, 4)


def _of_length(low: int, high: int, length: int) -> Iterable[Ranges]:
    if low > high:
        return
    for place in range(1, length):
        unit = 1 << 6 * place
        if low // unit != high // unit:
            # Cut where the bytes before the last so many change, until these run through all of their values.
            if low % unit:
                edge = (low // unit + 1) * unit
                yield from _of_length(low, edge - 1, length)
                yield from _of_length(edge, high, length)
                return
            if high % unit != unit - 1:
                edge = high // unit * unit
                yield from _of_length(low, edge - 1, length)
                yield from _of_length(edge, high, length)
                return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _deterministic(nodes: _Nodes, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Transitions ``[states, 256]`` between sets of nodes, and which of them accept ``[states]``."""

    def closure(some: set[int]) -> frozenset[int]:
        pending, found = list(some), set(some)
        while pending:
            for node in nodes.free[pending.pop()]:
                if node not in found:
                    found.add(node)
                    pending.append(node)
        return frozenset(found)

    start = closure({0})
    number, rows, states = {start: 0}, [], [start]
    for state in states:  # which grows meanwhile
        if end in state:
            rows.append([number[state]] * 256)
            continue
        arcs = [arc for node in state for arc in nodes.arcs[node]]
        row: list[int] = []
        for byte, until in pairwise(sorted({0, 256, *(first for first, _, _ in arcs), *(last + 1 for _, last, _ in arcs)})):
            # A match may begin anywhere.
            after = closure({0, *(target for first, last, target in arcs if first <= byte <= last)})
            after = frozenset({end}) if end in after else after
            if after not in number:
                number[after] = len(number)
                states.append(after)
            row += [number[after]] * (until - byte)
        rows.append(row)
        if len(states) > _MOST_BEFORE:
            raise nodes.too_large()
    return np.array(rows), np.array([end in state for state in states])


def _smallest(arcs: NDArray[np.int64], accepts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """States that nothing tells apart become one (Moore, 1956)."""
    kind = accepts.astype(np.int64)
    while True:
        _, finer = np.unique(np.column_stack([kind, kind[arcs]]), axis=0, return_inverse=True)
        finer = finer.reshape(-1)
        if finer.max() == kind.max():
            break
        kind = finer
    accept = int(kind[accepts.argmax()])
    order = [int(kind[0]), *sorted(set(kind.tolist()) - {int(kind[0]), accept}), accept]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    one_of = [int((kind == each).argmax()) for each in order]
    return place[kind[arcs[one_of]]]
