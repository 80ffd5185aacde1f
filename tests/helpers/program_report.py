"""What became of the cells of a random program."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Failure:
    """A cell that is wrong."""

    cell: str
    what: str

    def __str__(self) -> str:
        return f"{self.cell}: {self.what}"


@dataclass
class Report:
    """What became of a program's cells.

    :ivar int checked: cells with a result or a refusal that was compared.
    :ivar list passed_over: cells that were not run, since they do not apply or could not judge.
    """

    failures: list[Failure] = field(default_factory=list)
    checked: int = 0
    tests: int = 0
    passed_over: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
