"""Procedural problems of reasoning-gym, judged by its own verifiers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..answers.worker_process import WorkerProcess
from ..inference.util.validation import unknown_name
from .base import Problem

_log = logging.getLogger(__name__)

INSTRUCTION = "Think step by step, and separate the steps by an empty line. At the end, put nothing but the answer in \\boxed{}."
"""What follows each problem's text by default, so that solutions fall into steps and their answers are found."""

_SECONDS = 30.0
"""For one problem or one judgement."""


@lru_cache(maxsize=1)
def _worker() -> WorkerProcess:
    # Some verifiers evaluate what the language model wrote, without a bound on time: not in this process. Some problems follow the order
    # of a set: the same hash seed everywhere makes them the same everywhere.
    return WorkerProcess(Path(__file__).with_name("gym_worker.py"), _SECONDS, {"PYTHONHASHSEED": "0"})


def _ask(kind: str, *values: Any) -> Any:
    """
    :raises ImportError: without reasoning-gym.
    :raises ValueError: for what reasoning-gym does not know or refuses.
    """
    if find_spec("reasoning_gym") is None:
        raise ImportError('procedural tasks need reasoning-gym: pip install "ppl-llm[reasoning-gym]"')
    reply = _worker().ask(kind, *values)
    if isinstance(reply, dict) and "unknown" in reply:
        raise unknown_name(reply["unknown"], reply["name"], reply["known"])
    if isinstance(reply, dict) and "refused" in reply:
        raise ValueError(f"reasoning-gym:{values[0]} with {values[1]}: {reply['refused']}")
    return reply


@dataclass(frozen=True)
class ReasoningGymVerifier:
    """Asks the verifier of a task of reasoning-gym, in its own process, which makes the problem again from these names and numbers.

    A judgement that takes too long counts as wrong.

    :ivar str task: name in reasoning-gym.
    :ivar str options: configuration as JSON.
    :ivar str version: of reasoning-gym.
    :ivar int index: of the problem.
    :raises ValueError: (``score``) where another version of reasoning-gym is installed.
    """

    task: str
    options: str
    version: str
    index: int
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def description(self) -> dict[str, Any]:
        return {"task": f"reasoning-gym:{self.task}", "options": json.loads(self.options), "version": self.version}

    def score(self, answer: str) -> float:
        if answer not in self._known:
            self._known[answer] = self._asked(answer)
        return self._known[answer]

    def _asked(self, answer: str) -> float:
        try:
            return float(_ask("score", self.task, self.options, self.version, self.index, answer))
        except TimeoutError:
            _log.warning("the verifier of reasoning-gym:%s gave no judgement of %.60r in %g seconds", self.task, answer, _SECONDS)
            return 0.0


@dataclass(frozen=True)
class ReasoningGymTask:
    """A task of `reasoning-gym <https://github.com/open-thought/reasoning-gym>`_ (``pip install "ppl-llm[reasoning-gym]"``).

    :param str name: such as ``chain_sum``.
    :param int size: number of problems.
    :param int seed: the same seed gives the same problems, in every process.
    :param str level: entry of the problems' metadata that tells how hard they are, such as ``num_terms``.
    :param str instruction: follows the text of each problem; empty for none.
    :param dict config: of the task, such as ``{"min_terms": 3}``; plain values.
    :raises ValueError: for an unknown task or option, with the nearest known one, or values that the task refuses.
    :raises ImportError: without reasoning-gym.
    """

    name: str
    size: int = 500
    seed: int = 0
    level: str | None = None
    instruction: str = INSTRUCTION
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, value, least in (("size", self.size, 1), ("seed", self.seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{what} of reasoning-gym:{self.name} must be an integer of at least {least}, got {value!r}")
        self.description()

    @property
    def options(self) -> str:
        """The configuration as JSON."""
        return json.dumps({"size": self.size, "seed": self.seed, **self.config}, sort_keys=True)

    def description(self) -> dict[str, Any]:
        """Version of reasoning-gym, and the whole configuration."""
        found: dict[str, Any] = _ask("describe", self.name, self.options)
        return found

    def problems(self, limit: int | None = None) -> Iterator[Problem]:
        known = self.description()
        # What was given, not the whole configuration, which may hold what JSON does not, such as dates. Defaults are those of the version.
        options = self.options
        for index in range(known["size"] if limit is None else min(limit, known["size"])):
            made = _ask("problem", self.name, options, index, self.level)
            text = f"{made['question']}\n\n{self.instruction}" if self.instruction else made["question"]
            metadata = {} if made["level"] is None else {"level": made["level"]}
            verifier = ReasoningGymVerifier(self.name, options, known["version"], index)
            yield Problem(f"{self.name}-{self.seed}-{index}", text, made["answer"], metadata, verifier)
