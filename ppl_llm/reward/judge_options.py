"""Options of a judge that is named on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

_SCALE = re.compile(r"(-?\d+(?:\.\d+)?)-(-?\d+(?:\.\d+)?)")


def check_thinking(thoughts: int, agree: float | None, score: Any, k_meta: int | None, meta_prompt: Any = None) -> None:
    """Whether the numbers of a judge that thinks go together.

    :raises ValueError: if not.
    """
    from ..inference.util.validation import check_count, check_optional_count  # not when the command line shows its help

    check_count("thoughts", thoughts, 0)
    if agree is not None and not 0.5 < agree < 1:
        raise ValueError(f"agree must lie in (0.5, 1), the probability of a word that needs no thought, got {agree!r}")
    check_optional_count("k_meta", k_meta)
    of_chains = {"agree": agree, "score": score, "k_meta": k_meta}
    if not thoughts and (idle := [name for name, value in of_chains.items() if value is not None]):
        raise ValueError(f"{idle[0]} is for a judge that thinks: give thoughts=K as well")
    if k_meta is not None and k_meta > thoughts:
        raise ValueError(f"k_meta must be at most thoughts = {thoughts}, got {k_meta}")
    if meta_prompt is not None and k_meta is None:
        raise ValueError("meta_prompt is for a judge of whose chains the best count: give k_meta as well")


@dataclass(frozen=True)
class JudgeOptions:
    """The parameters of :class:`~ppl_llm.JudgeReward` that have a name on the command line; what is not given is its default.

    :param str score: ``LOW-HIGH``, the scale of a score that the judge writes (:class:`~ppl_llm.StatedScore`), or ``FILE.py:function``.
    """

    thoughts: int | None = None
    agree: float | None = None
    score: str | None = None
    k_meta: int | None = None
    thought_tokens: int | None = None
    each_step: bool = False
    yes: str | None = None
    no: str | None = None

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    def __str__(self) -> str:
        return ", ".join(name if value is True else f"{name}={value}" for name, value in self.given().items())

    def check(self) -> None:
        """
        :raises ValueError: for numbers that do not go together, or a scale or a function that is none.
        :raises OSError: if there is no file with the function.
        """
        check_thinking(self.thoughts or 0, self.agree, self.score, self.k_meta)
        if self.thought_tokens is not None:
            from ..inference.util.validation import check_count

            check_count("thought_tokens", self.thought_tokens)
        self._score()

    def keywords(self) -> dict[str, Any]:
        """Of :class:`~ppl_llm.JudgeReward`."""
        return {**self.given(), **({} if self.score is None else {"score": self._score()})}

    def _score(self) -> Callable[[str], float | None] | None:
        if self.score is None:
            return None
        scale = _SCALE.fullmatch(self.score)
        if scale is not None:
            from .stated_score import StatedScore

            try:
                return StatedScore(float(scale[1]), float(scale[2]))
            except ValueError as error:
                raise ValueError(f"score must be a scale with its lower end first, such as 1-10, got {self.score!r}") from error
        if ":" not in self.score:
            raise ValueError(f"score must be a scale such as 1-10, or FILE.py:function, got {self.score!r}")
        from .python_file import python_function

        return python_function(self.score, "score function")
