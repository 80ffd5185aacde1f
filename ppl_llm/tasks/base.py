"""What a task offers: problems, each with a right answer or with a verifier, and with a level where there is one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

RIGHT = 1.0
"""Least score of a right answer: credit for parts of an answer is recorded, and counts as wrong."""


@runtime_checkable
class Verifier(Protocol):
    """Judges the answers of one problem.

    A plain value that names what judges and holds nothing loaded, so that it can be sent to another process or machine.
    """

    @property
    def description(self) -> dict[str, Any]:
        """What decides its judgements, as plain values that are the same for all problems of a task."""
        ...

    def score(self, answer: str) -> float:
        """In [0, 1]; from :data:`RIGHT` on the answer is right."""
        ...


@runtime_checkable
class StepChecker(Protocol):
    """Tells which steps of a solution to one problem are right, each by itself. A plain value, as a :class:`Verifier` is."""

    def labels(self, steps: Sequence[str]) -> list[bool]:
        """Whether each step is right."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about an answer.

    :ivar float score: in [0, 1]; from :data:`RIGHT` on the answer is right.
    :ivar str message: what is wrong, in words, for the next attempt.
    """

    score: float
    message: str = ""


@runtime_checkable
class Critic(Protocol):
    """Says about an answer what is wrong with it."""

    def verdict(self, answer: str) -> Verdict:
        """Score and message."""
        ...


@dataclass(frozen=True)
class Problem:
    """A problem, and how its answers are judged.

    :ivar str id: unique in its data set, and the same whenever the data set is read.
    :ivar str text: what the language model is asked.
    :ivar str answer: the right answer, ``None`` if it is not known or not the only one.
    :ivar dict metadata: further columns, with ``level`` under this name where there is one.
    :ivar Verifier verifier: judges answers in place of a comparison with ``answer``.
    :ivar Critic critic: has messages about answers, for feedback; that may be the verifier itself.
    :ivar StepChecker checker: judges steps, where the task can.
    """

    id: str
    text: str
    answer: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    verifier: Verifier | None = None
    critic: Critic | None = None
    checker: StepChecker | None = None

    def verdicts(self, answers: Iterable[Hashable]) -> dict[str, float]:
        """The verifier's score of each distinct answer that is not ``None``; nothing without a verifier."""
        if self.verifier is None:
            return {}
        return {answer: self._score(self.verifier, answer) for answer in dict.fromkeys(str(a) for a in answers if a is not None)}

    def is_right(self, answer: Hashable) -> bool:
        """By the verifier where there is one, else by comparison with the right answer as it is written; no answer is never right."""
        if answer is None:
            return False
        if self.verifier is not None:
            return self._score(self.verifier, str(answer)) >= RIGHT
        return self.answer is not None and str(answer) == str(self.answer)

    def _score(self, verifier: Verifier, answer: str) -> float:
        score = verifier.score(answer)
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ValueError(
                f"the verifier of problem {self.id!r} must give a score in [0, 1], got {score!r} for the answer {answer[-80:]!r}"
            )
        return float(score)


@runtime_checkable
class Task(Protocol):
    """A source of problems."""

    def problems(self, limit: int | None = None) -> Iterator[Problem]:
        """Its problems, one after another, always the same ones in the same order.

        :param int limit: problems at most.
        """
        ...
