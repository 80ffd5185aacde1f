"""A score that a judge writes into its critique."""

from __future__ import annotations

import math
import re

from ..answers.extraction import extract_answer
from ..inference.util.checked import checked

_NUMBER = r"(-?\d+(?:\.\d+)?)(?!\d*(?:[.,eE]\d|\s*\\?%))(?:\s*(?:/|out of)\s*(\d+(?:\.\d+)?))?"
"""A number, and what it is out of; 80%, 7,5 and 1e1 are none."""
_SCORE = re.compile(rf"\bscore\b[^\d\n-]{{0,20}}{_NUMBER}", re.IGNORECASE)
_BOXED = re.compile(_NUMBER)


class StatedScore:
    r"""Reads the score that a critique ends with, for ``JudgeReward(score=...)``, and asks for it in the judge's own prompt.

    It is the last ``\boxed{7}``, also ``\boxed{7/10}``, else the number after the last word "score", past a mention of the scale itself,
    as in "Score (1-10): 7". A number outside of the scale is none, nor is one out of another number (``3/5``) or in percent, and a critique
    without one has none.

    :param float lowest: of the scale; means certainly wrong, the probability 0.
    :param float highest: means certainly right.
    :raises ValueError: if ``lowest`` is not below ``highest``, or one of them is not finite.
    """

    @checked
    def __init__(self, lowest: float = 1.0, highest: float = 10.0) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest must be below highest = {highest:g}, got {lowest:g}")
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(f"lowest and highest must be finite, got {lowest:g} and {highest:g}")
        self.lowest, self.highest = lowest, highest
        self._scale = re.compile(
            rf"(?<![\d.]){re.escape(f'{lowest:g}')}\s*(?:-|\u2013|\u2014|to)\s*{re.escape(f'{highest:g}')}(?![\d.]*\d)"
        )

    @property
    def __name__(self) -> str:
        return f"{type(self).__name__}({self!r})"

    @property
    def request(self) -> str:
        """What a judge is asked to do."""
        return (
            f"Write a critique of it, then end with its score from {self.lowest:g} (certainly wrong) to {self.highest:g} (certainly right) "
            "in \\boxed{}."
        )

    def __call__(self, text: str) -> float | None:
        boxed = extract_answer(text, ("boxed",))
        found = _BOXED.match(boxed.strip("$ ")) if boxed is not None else None
        if found is None:
            *_, found = [None, *_SCORE.finditer(self._scale.sub("", text))]
        if found is None or (found[2] is not None and float(found[2]) != self.highest):
            return None
        said = float(found[1])
        return (said - self.lowest) / (self.highest - self.lowest) if self.lowest <= said <= self.highest else None

    def __repr__(self) -> str:
        return f"{self.lowest:g}-{self.highest:g}"
