"""Problems by the name of where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..inference.util.validation import unknown_name
from .base import Problem, Task
from .code_task import CodeTask
from .demo_task import DemoTask
from .isolation import Limits
from .reasoning_gym_task import ReasoningGymTask
from .row_task import Field, Row, RowTask

GYM = "reasoning-gym:"
"""What the names of the tasks of reasoning-gym begin with."""


CODE = "code:"
"""What the names of tasks begin with whose answers are programs, run with their tests."""


def load_problems(
    source: str | Path | Iterable[Row],
    *,
    problem: Field | None = None,
    answer: Field | None = None,
    id: Field | None = None,
    level: Field | None = None,
    limit: int | None = None,
    split: str = "test",
    config: str | None = None,
) -> Iterator[Problem]:
    """Problems of a data set, one after another.

    Example::

        load_problems("math.jsonl")
        load_problems("openai/gsm8k", config="main", answer=lambda row: extract_answer(row["answer"]))
        load_problems("demo", limit=12)
        load_problems("reasoning-gym:chain_sum", limit=100)
        load_problems("code:programs.jsonl")

    :param source: a JSONL file, the name of a data set on the Hugging Face Hub (``pip install "ppl-llm[datasets]"``), ``"demo"`` for
        held-out problems of the demo models, ``"reasoning-gym:TASK"`` (:class:`~ppl_llm.tasks.ReasoningGymTask` has its options; ``pip
        install "ppl-llm[reasoning-gym]"``), ``"code:FILE"`` for programs that are run with the tests of their rows
        (:class:`~ppl_llm.tasks.CodeTask`), or rows such as a ``datasets.Dataset``.
    :param problem: column of the text, or a function of the row; by default the first of ``problem``, ``question``, ``text`` that exists.
    :param answer: of the right answer; by default ``answer`` or ``final_answer``, and ``None`` without either.
    :param id: by default ``id`` or ``unique_id``, or the number of the row, from 1.
    :param level: of the difficulty; by default ``level``.
    :param int limit: problems at most.
    :param str split: of a data set on the Hub.
    :param str config: its configuration, where it has several.
    :raises OSError: if there is no such file or data set.
    :raises ImportError: for a data set or a task whose library is missing.
    :raises ValueError: for a row that is not a problem, naming its line.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be None or an integer of at least 1, got {limit!r}")
    if isinstance(source, str) and (source == "demo" or source.startswith((GYM, CODE))):
        given = {"problem": problem, "answer": answer, "id": id, "level": level, "config": config}
        if source.startswith(CODE):
            given["split"] = split
        return open_task(source, {name: value for name, value in given.items() if value is not None}).problems(limit)
    return RowTask(source, problem, answer, id, level, split, config).problems(limit)


def open_task(name: str | Path, options: Mapping[str, Any] | None = None) -> Task:
    """A task by name, as ``ppl-llm evaluate`` takes it.

    Example::

        open_task("reasoning-gym:chain_sum", {"size": 50, "seed": 3, "min_terms": 4, "level": "num_terms"})

    :param name: see ``source`` of :func:`load_problems`.
    :param dict options: of the task: fields of :class:`~ppl_llm.tasks.RowTask`, or of :class:`~ppl_llm.tasks.ReasoningGymTask`, where all
        others are its configuration.
    :raises ValueError: for an option that the task does not have.
    :raises ImportError: for a task whose library is missing.
    """
    options = dict(options or {})
    text = str(name)
    if text.startswith(GYM):
        own = {key: options.pop(key) for key in ("size", "seed", "level", "instruction") if key in options}
        return ReasoningGymTask(text.removeprefix(GYM), config=options, **own)
    rows = [f.name for f in dataclasses.fields(RowTask) if f.name != "source"]
    if text.startswith(CODE):
        every = ["tests", "public_tests", "instruction", *(f.name for f in dataclasses.fields(Limits)), *rows]
        for key in options:
            if key not in every:
                raise unknown_name(f"option of {text!r}", key, every)
        return CodeTask.of(text.removeprefix(CODE), options)
    known = [] if text == "demo" else rows
    for key in options:
        if not known:
            raise ValueError(f"the task {text!r} has no options, got {key!r}")
        if key not in known:
            raise unknown_name(f"option of {text!r}", key, known)
    return DemoTask() if text == "demo" else RowTask(name, **options)
