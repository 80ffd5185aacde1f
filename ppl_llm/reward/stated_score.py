"""A score that a judge writes into its critique."""

from __future__ import annotations

import re

from ..answers.extraction import extract_answer
from ..inference.util.checked import checked

_SCORE = re.compile(r"\bscore\b[^\d\n-]{0,20}(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class StatedScore:
    r"""Reads the score that a critique ends with, for ``JudgeReward(score=...)``, and asks for it in the judge's own prompt.

    It is the last ``\boxed{7}``, also ``\boxed{7/10}``, else the number after the last word "score". A number outside of the scale is
    none, and neither is a critique without one.

    :param float lowest: of the scale; means certainly wrong, the probability 0.
    :param float highest: means certainly right.
    :raises ValueError: if ``lowest`` is not below ``highest``.
    """

    @checked
    def __init__(self, lowest: float = 1.0, highest: float = 10.0) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest must be below highest = {highest:g}, got {lowest:g}")
        self.lowest, self.highest = lowest, highest

    @property
    def request(self) -> str:
        """What a judge is asked to do."""
        return (
            f"Write a critique of it, then end with its score from {self.lowest:g} (certainly wrong) to {self.highest:g} (certainly right) "
            "in \\boxed{}."
        )

    def __call__(self, text: str) -> float | None:
        boxed = extract_answer(text, ("boxed",))
        found = _NUMBER.match(boxed.strip("$ ")) if boxed is not None else None
        said = found[0] if found else next(iter(reversed(_SCORE.findall(text))), None)
        if said is None or not self.lowest <= float(said) <= self.highest:
            return None
        return (float(said) - self.lowest) / (self.highest - self.lowest)

    def __repr__(self) -> str:
        return f"{self.lowest:g}-{self.highest:g}"
