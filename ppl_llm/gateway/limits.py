"""What a request may ask for, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of a gateway.

    :ivar int body_bytes: of a request.
    :ivar int particles: solutions of a request that are written side by side.
    :ivar int tokens: of a solution.
    :ivar int steps: of a solution.
    :ivar int choices: answers of a request (``n``), and prompts of a completion request.
    :ivar int concurrent: programs under way at a time; a request has one for each of its prompts.
    :ivar int queue: programs that wait beyond those; more are refused with status 429.
    :ivar int sequences: in a batch of the language model.
    :ivar float deadline: seconds that a request may take, its wait included.
    :ivar float grace: seconds that requests under way have to finish after SIGTERM.
    :ivar int runs: pages of runs kept at a time.
    :ivar float run_seconds: how long a page is kept.
    :raises ValueError: for a bound that is not positive.
    """

    body_bytes: int = 1 << 20
    particles: int = 256
    tokens: int = 4096
    steps: int = 200
    choices: int = 16
    concurrent: int = 32
    queue: int = 64
    sequences: int = 256
    deadline: float = 300.0
    grace: float = 30.0
    runs: int = 64
    run_seconds: float = 900.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            may_be_none = each.name in ("queue", "runs", "grace")
            if not value > 0 and not (value == 0 and may_be_none):
                raise ValueError(f"{each.name} must be positive{' or 0' if may_be_none else ''}, got {value!r}")
