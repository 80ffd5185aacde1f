"""Problems whose answers are programs, judged by unit tests."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .base import RIGHT, Problem, Verdict
from .isolation import DEFAULT_LIMITS, Limits
from .row_task import Field, Row, RowTask

_FAILURES = 3
"""Tests that a message tells of."""
_SHOWN = 200

INSTRUCTION = "Write a Python program. At the end, put the whole program into one code block:\n```python\n...\n```"
"""What follows each problem's text by default, so that the program is found."""


@dataclass(frozen=True)
class CodeVerifier:
    """Runs a program and its tests in a process of its own, within :class:`Limits`.

    A program that fails to end, crashes, or goes beyond its bounds fails its tests, and the message says which and how. Results are kept:
    a program is run once.

    A program can find out that it is tested, and cheat; tests that it does not see are no proof against that.

    :ivar tuple tests: as JSON, see :meth:`Limits.run`.
    :ivar Limits limits: of a run.
    """

    tests: tuple[str, ...]
    limits: Limits = DEFAULT_LIMITS
    _known: dict[str, Verdict] = field(default_factory=dict, compare=False, repr=False)

    @property
    def description(self) -> dict[str, Any]:
        return {"task": "code", "python": platform.python_version(), **asdict(self.limits)}

    @property
    def digest(self) -> str:
        """Of the tests."""
        return hashlib.sha256("\n".join(self.tests).encode()).hexdigest()[:16]

    def score(self, answer: str) -> float:
        """The share of the tests that the program passes."""
        return self.verdict(answer).score

    def verdict(self, answer: str) -> Verdict:
        """The share of the tests that a program passes, and which it fails how.

        :raises ValueError: where this machine does not give the isolation that was asked for.
        """
        if answer not in self._known:
            self._known[answer] = self._judged(answer)
        return self._known[answer]

    def _judged(self, program: str) -> Verdict:
        tests = [json.loads(test) for test in self.tests]
        found = self.limits.run(program, tests)
        failed = [number for number, why in enumerate(found) if why is not None]
        if not failed:
            return Verdict(RIGHT, f"All {len(tests)} tests pass." if len(tests) > 1 else "The test passes.")
        lines = [f"Test {number + 1}, {_named(tests[number])}: {found[number]}." for number in failed[:_FAILURES]]
        left = len(tests) - len(found)
        passed = found.count(None)
        lines += [f"The program was ended; {left} further test{' was' if left == 1 else 's were'} not run."] if left else []
        return Verdict(min(passed / len(tests), 0.99), "\n".join([f"{passed} of {len(tests)} tests pass.", *lines]))


def _named(test: Any) -> str:
    text = f"given {test['input'].strip()!r}" if isinstance(test, dict) else test.strip().splitlines()[-1]
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@dataclass(frozen=True)
class CodeTask:
    """Programming problems from rows with the fields ``problem`` and ``tests``, such as a JSONL file.

    ``tests`` is a text or a list of them, statements in Python that run after the program (``assert add(1, 2) == 3``, or a function with
    all checks and a call of it), or of ``{"input": ..., "output": ...}``: what the program reads and prints. ``public_tests``, where a row
    has them, are those that feedback may tell of; without them it tells of ``tests``, and then the tests that grade a solution have helped
    to write it. A problem's answer is the last complete code block of a solution (``answer_fallback="code"``).

    :param RowTask rows: that hold them.
    :param tests: the column of the tests, or a function of the row.
    :param str instruction: follows the text of each problem; empty for none.
    :param limits: of a program, see :class:`Limits`.
    :raises ValueError: for limits out of range; (``problems``) for a row without tests, and where this machine does not
        give the isolation.
    """

    rows: RowTask
    tests: Field = "tests"
    public_tests: Field = "public_tests"
    instruction: str = INSTRUCTION
    limits: Limits = DEFAULT_LIMITS

    @classmethod
    def of(cls, source: Any, options: Mapping[str, Any]) -> CodeTask:
        """From the options of a command line: fields of this class, of :class:`RowTask` and of :class:`Limits` by their names."""
        own = {name: value for name, value in options.items() if name in ("tests", "public_tests", "instruction")}
        bounds = {name: value for name, value in options.items() if name in Limits.__dataclass_fields__}
        rest = {name: value for name, value in options.items() if name not in own and name not in bounds}
        return cls(RowTask(source, **rest), **own, limits=Limits(**bounds))

    def problems(self, limit: int | None = None) -> Iterator[Problem]:
        self.limits.check()
        for problem in self.rows.problems(limit):
            row = problem.metadata
            tests = _tests(problem.id, row, self.tests)
            if tests is None:
                raise ValueError(f"problem {problem.id!r}: no tests; the task code needs a field {self.tests!r}")
            public = _tests(problem.id, row, self.public_tests)
            text = f"{problem.text}\n\n{self.instruction}" if self.instruction else problem.text
            kept = {name: value for name, value in row.items() if name not in (self.tests, self.public_tests)}
            verifier = CodeVerifier(tests, self.limits)
            critic = verifier if public is None else CodeVerifier(public, self.limits)
            yield replace(problem, text=text, answer=None, metadata=kept, verifier=verifier, critic=critic)


def _tests(name: str, row: Row, column: Field) -> tuple[str, ...] | None:
    """Tests of a row as JSON."""
    value = row.get(column) if isinstance(column, str) else column(row)
    if value is None:
        return None
    tests = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(tests, list | tuple) or not tests:
        raise ValueError(f"problem {name!r}: tests must be a text, or a list that is not empty, got {value!r:.100}")
    for test in tests:
        pair = isinstance(test, Mapping) and set(test) >= {"input", "output"} and all(isinstance(test[k], str) for k in ("input", "output"))
        if not pair and not (isinstance(test, str) and test.strip()):
            raise ValueError(f'problem {name!r}: a test must be Python, or {{"input": text, "output": text}}, got {test!r:.100}')
    return tuple(json.dumps(test, sort_keys=True) for test in tests)
