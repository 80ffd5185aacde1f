"""How a reasoning trace is written for a process reward model."""

from __future__ import annotations

import re
from typing import Protocol


class PRMFormat(Protocol):
    """Token ids of a problem and of the steps after it, as the model was trained to read them.

    The ids of a trace are ``prompt(problem) + step(first, 0) + step(second, 1) + ...``, and each step is scored at the last of its ids.
    What a step looks like therefore must not depend on the steps after it.

    :ivar dict ids: the token ids that the format relies on, by their text; checked against the published ones.
    """

    ids: dict[str, int]

    def prompt(self, problem: str) -> list[int]:
        """Everything before the first step."""
        ...

    def step(self, text: str, index: int) -> list[int]:
        """The step number ``index``, from 0. Nothing that its text says can end it."""
        ...

    def answer(self, text: str) -> list[int]:
        """All steps so far as a single one."""
        ...


def one_block(text: str) -> str:
    """An answer without blank lines, which separate steps."""
    return re.sub(r"\s*\n\s*", "\n", text.strip())
