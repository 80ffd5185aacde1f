"""A package in the place of reasoning-gym, for tests of what passes between it and this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppl_llm.tasks import reasoning_gym_task

_FACTORY = """
import dataclasses, datetime, time

PROBLEMS = {problems!r}

@dataclasses.dataclass
class Config:
    size: int = 500
    seed: int = 0
    base: int = 16

    def validate(self):
        assert self.base in (2, 16), "base must be 2 or 16"

class Sums:
    def __init__(self, config):
        self.config = config

    def __len__(self):
        return min(self.config.size, len(PROBLEMS))

    def __getitem__(self, index):
        text, answer, level = PROBLEMS[index]
        return {{"question": text, "answer": hex(int(answer)), "metadata": {{"steps": level, "order": list({{"a", "b", "c", "d", "e"}})}}}}

    def score_answer(self, answer, entry):
        if answer == "forever":
            time.sleep(600)
        right = int(entry["answer"], 0)
        return 1.0 if int(answer, 0) == right else 0.5 if abs(int(answer, 0)) == abs(right) else 0.0

class Orders(Sums):
    def __getitem__(self, index):
        entry = super().__getitem__(index)
        return {{**entry, "question": "".join(entry["metadata"]["order"])}}

@dataclasses.dataclass
class Dated(Config):
    since: datetime.date = datetime.date(2000, 1, 1)

class Days(Sums):
    def __getitem__(self, index):
        if index > 0:
            raise RuntimeError("no more days")
        day = self.config.since + datetime.timedelta(1)
        return {{"question": f"the day after {{day}}", "answer": "0x2", "metadata": {{"difficulty": 1.5}}}}

DATASETS = {{"sums": (Sums, Config), "orders": (Orders, Config), "days": (Days, Dated)}}
"""


@contextmanager
def fake_gym(
    monkeypatch: pytest.MonkeyPatch, folder: Path, problems: Sequence[tuple[str, str, int]], version: str = "9.9"
) -> Iterator[None]:
    """``reasoning_gym`` with three tasks: ``sums``, whose right answers are written in base 16 and recognised in every base, half right
    with the wrong sign; ``orders``, whose problems follow the order of a set; and ``days``, with a date in its configuration, a difficulty
    that is a number, and a generator that fails at its second problem.

    :param problems: text, answer and number of steps.
    """
    package, about = folder / "reasoning_gym", folder / f"reasoning_gym-{version}.dist-info"
    for directory in (package, about):
        directory.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "factory.py").write_text(_FACTORY.format(problems=list(problems)))
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: reasoning-gym\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    reasoning_gym_task._worker.cache_clear()
    yield
    reasoning_gym_task._worker.cache_clear()
