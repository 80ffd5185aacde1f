"""Held-out problems of the demo models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .base import Problem

DEMO_SIZE = 60
"""Problems where no limit is given."""


@dataclass(frozen=True)
class DemoSteps:
    """The symbolic checker of the demo, see :func:`ppl_llm.demo.checker.check_steps`."""

    problem: str

    def labels(self, steps: Sequence[str]) -> list[bool]:
        from ..demo.checker import check_steps

        return check_steps(self.problem, steps)


@dataclass(frozen=True)
class DemoTask:
    """The arithmetic problems inside this package, levels 1 to 6 in turn."""

    def problems(self, limit: int | None = None) -> Iterator[Problem]:
        from ..demo import held_out

        for index, made in enumerate(held_out(limit or DEMO_SIZE), 1):
            metadata = {"level": made.level, "solution": made.solution}
            yield Problem(f"demo-{index}", made.text, made.answer, metadata, checker=DemoSteps(made.text))
