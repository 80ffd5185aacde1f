"""What ``ppl-llm check`` found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from .report import plain


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    :ivar str name: what.
    :ivar bool ok: whether it works; ``None`` where there is nothing to pass, such as a speed.
    :ivar str detail: what was found.
    :ivar str remedy: what to do where it does not work, or could work better.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


class Findings:
    """A list of findings, shown as they come.

    :param Console console: to print on; ``None`` to keep silent.
    """

    def __init__(self, console: Console | None) -> None:
        self.items: list[Finding] = []
        self._console = console

    def add(self, name: str, ok: bool | None, detail: str, remedy: str = "") -> None:
        """Record and print a finding."""
        found = Finding(name, ok, plain(detail), plain(remedy))
        self.items.append(found)
        if self._console is None:
            return
        ascii_only = self._console.options.ascii_only
        mark, style = {True: ("+" if ascii_only else "✓", "green"), False: ("x" if ascii_only else "✗", "red"), None: ("-", "dim")}[
            found.ok
        ]
        self._console.print(Text.assemble((f"{mark} ", style), (f"{found.name}: ", "bold"), found.detail), soft_wrap=True)
        if found.remedy:
            self._console.print(Text(f"    {found.remedy}", style="yellow" if found.ok is False else "dim"), soft_wrap=True)

    @contextmanager
    def trying(self, name: str, remedy: str = "") -> Iterator[None]:
        """What the library cannot do is a finding; every other exception is a defect."""
        try:
            yield
        except (ValueError, OSError, NotImplementedError) as error:
            self.add(name, False, " ".join(str(error).split()), remedy)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(found.ok is not False for found in self.items)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "findings": [asdict(found) for found in self.items]}
