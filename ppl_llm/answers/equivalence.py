"""When two answers are the same."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Hashable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .worker_process import WorkerProcess

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|bf|rm)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Z])\)?[.:]?")
_BASE = re.compile(r"([0-9A-Z]+)_\{?(\d+)\}?")
_NUMBER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?|[-+]?\.\d+")
_IN_PARENTHESES = re.compile(rf"\(\s*({_NUMBER.pattern})\s*\)")
_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*")
_REMEMBERED = 100_000
_PATIENCE = 2
"""Timeouts after which an answer is compared with no other; one that cannot be read in time has used them up."""

_NEAR = 1e-4
"""Distance, relative for large numbers, beyond which two values are never equal; math-verify compares to six decimal places."""


class MathEquivalence:
    r"""Mathematical equality of answers written in LaTeX or plainly, by math-verify (``pip install "ppl-llm[math]"``).

    ``equivalent(r"\frac{1}{2}", "0.5")`` is true, and so is ``equivalent(r"\text{(B)}", "B")``. Symmetric, but not transitive where
    rounding or a per cent sign allows more than one reading; votes therefore compare with one representative of each class
    (:func:`~ppl_llm.inference.representatives`). Works in threads. Comparisons run in a process of their own and are given up after
    ``timeout``; answers that cannot be compared in time are different. Identical answers and pairs of plain numbers, words, choice letters
    or numbers in a base are decided at once, and every result is remembered.

    :param float timeout: seconds for one comparison.
    :raises ImportError: if math-verify is not installed.
    :raises ValueError: if the timeout is not positive.
    """

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
        left, right = sorted((normalised(first), normalised(second)))
        if left == right:
            return True
        decided = decide(left, right)
        return self._compare(left, right) if decided is None else decided

    def _compare(self, left: str, right: str) -> bool:
        key = (left, right)
        if key not in self._equal:
            self._remember(self._equal, key, self._ask_equal(left, right))
        return self._equal[key]

    def _ask_equal(self, left: str, right: str) -> bool:
        first, second = self._description(left), self._description(right)
        if any(self._strikes.get(text, 0) >= _PATIENCE for text in (left, right)) or apart(first, second):
            return False
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


def normalised(text: str) -> str:
    r"""Without white space around it, a final full stop, enclosing ``$`` or ``\( \)``, ``\text{}``, and parentheses around a number."""
    while True:
        before = text
        text = text.strip().removesuffix(".").strip("$ \n\t").removesuffix("\\")
        if text.startswith("\\(") and text.endswith("\\)"):
            text = text[2:-2]
        wrapped = _WRAPPED.fullmatch(text) or _IN_PARENTHESES.fullmatch(text)
        if wrapped:
            text = wrapped[1]
        if text == before:
            return text


def decide(left: str, right: str) -> bool | None:
    """Equality of two normalised answers that need no algebra: numbers, words, choice letters, numbers in a base; else ``None``."""
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return Fraction(left.replace(",", "")) == Fraction(right.replace(",", ""))
    for pattern in (_CHOICE, _BASE):
        first, second = pattern.fullmatch(left), pattern.fullmatch(right)
        if first and second:
            return first.groups() == second.groups()
    if _WORDS.fullmatch(left) and _WORDS.fullmatch(right):
        return left.casefold() == right.casefold()
    return False if not left or not right else None


def apart(first: Any, second: Any) -> bool:
    """Whether two descriptions by :mod:`ppl_llm.answers.math_worker` show that the answers differ."""
    if isinstance(first, list) and isinstance(second, list):
        return not all(math.isclose(a, b, rel_tol=_NEAR, abs_tol=_NEAR) for a, b in zip(first, second, strict=True))
    return {type(first), type(second)} == {list, str}  # an expression and a collection
