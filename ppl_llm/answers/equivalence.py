"""When two answers are the same."""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Hashable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..inference.util.checked import checked
from .normalization import looks_mathematical, normalized, squeezed
from .quantity import Quantity, without_unit
from .worker_process import WorkerProcess

_LABELLED = re.compile(r"\(([A-J])\)\s{0,3}[.:]?\s{0,3}(.*)|([A-J])(?:[.:)]\s{0,3}(.*))?", re.DOTALL)
_BASE = re.compile(r"([0-9A-Z]{1,400})_\{?(\d{1,3})\}?")
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?\s{0,3}([AaPp])\.?\s?[Mm]\.?")
_NO_NUMBER = re.compile(r"[-+]?[\d.,]{1,400}(?:[A-Za-z]|_\{?\d{1,3}\}?)")
_LETTERS = re.compile(r"\(?[A-J]\)?(?:\s{0,3}(?:,\s{0,3}and|,|and|&)\s{0,3}\(?[A-J]\)?){1,9}")
_VARIABLES = re.compile("[abcdkmnpqrstuvwxyz]{2,3}")
_REMEMBERED = 100_000
_LONGEST = 2000
"""Characters of an answer that is read as mathematics; longer ones, which are degenerate, are compared as they are written."""
_DEEPEST = 20
"""Levels of braces and parentheses."""
_PATIENCE = 2
"""Timeouts after which an answer is compared with no other; one that cannot be read in time has used them up."""

_NEAR = Decimal("1e-4")
"""Relative distance beyond which two expressions are never equal."""
_DIGITS = 6
"""Significant digits, rounded, by which a constant written as a decimal number is equal to another one."""
_EXACT = Decimal("1e-12")
"""Relative distance up to which constants are equal that are not written as decimals."""
_WIDE = Context(prec=40, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


class MathEquivalence:
    r"""Mathematical equality of answers written in LaTeX or plainly, by math-verify (``pip install "ppl-llm[math]"``).

    ``equivalent(r"\frac{1}{2}", "0.5")`` is true, and so are ``equivalent(r"\text{(B)}", "B. 12")`` and ``equivalent("18 dollars", "18")``.
    Symmetric, but not transitive where rounding, a unit or a per cent sign allows more than one reading: ``18 dollars`` and ``18 euros``
    are both ``18`` and differ. Votes therefore compare with one representative of each class
    (:func:`~ppl_llm.inference.representatives`). No text makes it raise an error.

    Works in threads. Comparisons run in their own process and are given up after ``timeout``; answers that cannot be compared in time
    are different. Answers that are written alike, numbers with or without units, words, times, choice letters and numbers in a base are
    decided at once, and every result is remembered.

    :param float timeout: seconds for one comparison.
    :raises ImportError: if math-verify is not installed.
    :raises ValueError: if the timeout is not positive.
    """

    @checked
    def __init__(self, timeout: float = 5.0) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout!r}")
        if find_spec("math_verify") is None:
            raise ImportError('mathematical equivalence needs math-verify: pip install "ppl-llm[math]"')
        self._process = WorkerProcess(Path(__file__).with_name("math_worker.py"), timeout)
        self._equal: dict[tuple[str, str], bool] = {}
        self._descriptions: dict[str, Any] = {}
        self._strikes: dict[str, int] = {}  # timeouts of each text
        self._lock = threading.Lock()

    @property
    def timeouts(self) -> int:
        """Comparisons that were given up."""
        return self._process.timeouts

    def __call__(self, first: Hashable, second: Hashable) -> bool:
        """Whether two answers are the same; ``None`` is the same as nothing else."""
        if first == second:
            return True
        if not isinstance(first, str) or not isinstance(second, str):
            return False
        if max(len(first), len(second)) > _LONGEST:
            return same_long(first, second)
        left, right = sorted((_normalized(first), _normalized(second)))
        decided = decide(left, right)
        return self._compare(without_unit(left), without_unit(right)) if decided is None else decided

    def _compare(self, left: str, right: str) -> bool:
        key = (left, right)
        if key not in self._equal:
            self._remember(self._equal, key, left == right or self._ask_equal(left, right))
        return self._equal[key]

    def _ask_equal(self, left: str, right: str) -> bool:
        first, second = self._description(left), self._description(right)
        if any(self._strikes.get(text, 0) >= _PATIENCE for text in (left, right)):
            return False
        decided = compared(first, second)
        if decided is not None:
            return decided
        try:
            return bool(self._process.ask("equal", left, right))
        except TimeoutError:
            for text in (left, right):
                self._strikes[text] = self._strikes.get(text, 0) + 1
            return False

    def _description(self, text: str) -> Any:
        if text not in self._descriptions:
            description = None
            try:
                description = self._process.ask("describe", text)
            except TimeoutError:
                self._strikes[text] = _PATIENCE
            self._remember(self._descriptions, text, description)
        return self._descriptions[text]

    def _remember(self, memory: dict[Any, Any], key: Any, result: Any) -> None:
        with self._lock:
            if len(memory) >= _REMEMBERED:
                memory.pop(next(iter(memory)))
            memory[key] = result


_normalized = lru_cache(maxsize=10_000)(normalized)


def same_long(first: str, second: str) -> bool:
    """Of answers too long to be read as mathematics: numbers by their value, others as they are written."""
    left, right = Quantity.read(first.strip()), Quantity.read(second.strip())
    return " ".join(first.split()) == " ".join(second.split()) or (left is not None and right is not None and left.same(right))


def decide(left: str, right: str) -> bool | None:
    """Equality of two normalized answers that need no algebra; else ``None``."""
    if squeezed(left) == squeezed(right):
        return True
    if not left or not right:
        return False
    labels = [_LABELLED.fullmatch(text) for text in (left, right)]
    if labels[0] and labels[1]:
        letters, options = zip(*((m[1] or m[3], m[2] or m[4]) for m in labels if m), strict=True)
        return letters[0] == letters[1] and not (all(options) and options[0] != options[1])
    quantities = Quantity.read(left), Quantity.read(right)
    if quantities[0] is not None and quantities[1] is not None:
        return quantities[0].same(quantities[1])
    if any(number is not None and _NO_NUMBER.fullmatch(other) for number, other in zip(quantities, (right, left), strict=True)):
        return False  # math-verify takes the m of 5m for a unit, and drops the base of 12_3
    for pattern, key in ((_TIME, _minutes), (_BASE, re.Match.groups), (_LETTERS, _letters)):
        first, second = pattern.fullmatch(left), pattern.fullmatch(right)
        if first and second:
            return bool(key(first) == key(second))
    if _VARIABLES.fullmatch(left) and _VARIABLES.fullmatch(right) and sorted(left) == sorted(right):
        return True
    words = [not looks_mathematical(text) and sum(map(str.isalpha, text)) > 1 for text in (left, right)]
    if all(words):
        return _folded(left) == _folded(right)
    sentence = any(each and (" " in text or len(text) > 3) for each, text in zip(words, (left, right), strict=True))
    return False if sentence or not (_readable(left) and _readable(right)) else None


def _minutes(time: re.Match[str]) -> int:
    return int(time[1]) % 12 * 60 + int(time[2] or 0) + 720 * (time[3] in "Pp")


def _letters(text: re.Match[str]) -> list[str]:
    return sorted(set(re.findall("[A-J]", text[0])))


def _readable(text: str) -> bool:
    """Whether braces match and nothing is nested so deeply that no parser reads it in time."""
    braces = parentheses = deepest = 0
    for character in text:
        braces += (character == "{") - (character == "}")
        parentheses += (character in "([") - (character in ")]")
        deepest = max(deepest, braces + abs(parentheses))
        if braces < 0:
            return False
    return braces == 0 and deepest <= _DEEPEST


def _folded(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()) or text


def compared(first: Any, second: Any) -> bool | None:
    """Equality as far as two descriptions by :mod:`ppl_llm.answers.math_worker` tell it; else ``None``."""
    if isinstance(first, dict) and isinstance(second, dict):
        with localcontext(_WIDE):
            return _close(first, second)
    return False if {type(first), type(second)} == {dict, str} else None  # an expression and a collection


def _close(first: dict[str, Any], second: dict[str, Any]) -> bool | None:
    a, b = ([Decimal(part) for part in each["value"]] for each in (first, second))
    size = max(map(abs, a + b))
    distance = Decimal(0) if size == 0 else max(abs(x - y) for x, y in zip(a, b, strict=True)) / size
    if first["constant"] and second["constant"]:
        half = Decimal((0, (5,), size.adjusted() - _DIGITS)) / size if size else _EXACT
        return distance <= (_EXACT if first["exact"] and second["exact"] else half)
    return False if distance > _NEAR else None


def equivalence_named(name: str) -> Callable[[Hashable, Hashable], bool]:
    """``exact``: answers are compared as they are written; ``math``: by :class:`MathEquivalence`.

    :raises ImportError: for ``math`` without its extra.
    :raises ValueError: for another name.
    """
    if name == "exact":
        return operator.eq
    if name != "math":
        from ..inference.util.validation import unknown_name

        raise unknown_name("equivalence", name, ("exact", "math"))
    return MathEquivalence()
