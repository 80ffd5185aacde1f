"""Problems from files, from Hugging Face ``datasets``, and from the demo."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""Name of a column, or a function of the row."""

DEMO_SIZE = 60
"""Problems of ``"demo"`` where no limit is given."""

_PROBLEM = ("problem", "question", "text")
_ANSWER = ("answer", "final_answer")
_ID = ("id", "unique_id")


@dataclass(frozen=True)
class Problem:
    """A problem with its right answer.

    :ivar str id: unique in its data set.
    :ivar str text: what the language model is asked.
    :ivar str answer: the right answer, ``None`` if it is not known.
    :ivar dict metadata: further columns, with ``level`` under this name where there is one.
    """

    id: str
    text: str
    answer: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


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

    :param source: a JSONL file, the name of a data set on the Hugging Face Hub (``pip install "ppl-llm[datasets]"``), ``"demo"`` for
        held-out problems of the demo models, or rows such as a ``datasets.Dataset``.
    :param problem: column of the text, or a function of the row; by default the first of ``problem``, ``question``, ``text`` that exists.
    :param answer: of the right answer; by default ``answer`` or ``final_answer``, and ``None`` without either.
    :param id: by default ``id`` or ``unique_id``, or the number of the row, from 1.
    :param level: of the difficulty; by default ``level``.
    :param int limit: problems at most.
    :param str split: of a data set on the Hub.
    :param str config: its configuration, where it has several.
    :raises OSError: if there is no such file or data set.
    :raises ImportError: for a data set on the Hub without ``datasets``.
    :raises ValueError: for a row that is not a problem, naming its line.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be None or an integer of at least 1, got {limit!r}")
    if source == "demo":
        return iter(_demo(limit or DEMO_SIZE))
    rows: Iterable[tuple[str, Row]]
    if not isinstance(source, (str, Path)):
        rows = ((f"row {number}", row) for number, row in enumerate(source, 1))
    elif Path(source).expanduser().is_file():
        rows = _lines(Path(source).expanduser())
    else:
        rows = _hub(source, split, config)
    return itertools.islice(_problems(rows, problem, answer, id, level), limit)


def _problems(
    rows: Iterable[tuple[str, Row]], problem: Field | None, answer: Field | None, id: Field | None, level: Field | None
) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: expected an object with named fields, got {type(row).__name__}")
        text = _value(row, problem, _PROBLEM, where, "problem")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: the problem must be a text that is not empty, got {text!r}")
        right = _value(row, answer, _ANSWER, where, "answer", optional=answer is None)
        name = _plain(_value(row, id, _ID, where, "id", optional=id is None))
        name = str(number) if name is None else name
        if name in seen:
            raise ValueError(f"{where}: the id {name!r} is already that of {seen[name]}")
        seen[name] = where
        used = {_column(row, given, known) for given, known in ((problem, _PROBLEM), (answer, _ANSWER), (id, _ID))}
        metadata = {key: value for key, value in row.items() if key not in used}
        difficulty = _value(row, level, ("level",), where, "level", optional=level is None)
        if difficulty is not None:
            metadata["level"] = difficulty
        yield Problem(name, text, _plain(right), metadata)


def _column(row: Row, given: Field | None, known: tuple[str, ...]) -> str | None:
    """The column that a value is taken from, ``None`` if there is none."""
    if given is not None:
        return given if isinstance(given, str) and given in row else None
    return next((name for name in known if name in row), None)


def _value(row: Row, given: Field | None, known: tuple[str, ...], where: str, what: str, optional: bool = False) -> Any:
    if given is not None and not isinstance(given, str):
        return given(row)
    column = _column(row, given, known)
    if column is not None:
        return row[column]
    if optional:
        return None
    wanted = repr(given) if given is not None else " or ".join(map(repr, known))
    raise ValueError(f"{where}: no field {wanted} for the {what}; it has {', '.join(map(repr, row)) or 'none'}")


def _plain(value: Any) -> str | None:
    """A value as text; a whole number without its decimal point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
                yield where, row


def _hub(source: str | Path, split: str, config: str | None) -> Iterator[tuple[str, Row]]:
    name = str(source)
    if isinstance(source, Path) or name.endswith((".jsonl", ".json")) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"no file {name!r}; give a JSONL file, the name of a data set on the Hugging Face Hub, or 'demo'")
    if find_spec("datasets") is None:
        raise ImportError(f'{name!r} is no file, and data sets of the Hugging Face Hub need datasets: pip install "ppl-llm[datasets]"')
    import datasets

    rows = datasets.load_dataset(name, config, split=split)
    return ((f"{name} ({split}), row {number}", row) for number, row in enumerate(rows, 1))


def _demo(number: int) -> Iterator[Problem]:
    from .demo import held_out

    for index, made in enumerate(held_out(number), 1):
        yield Problem(f"demo-{index}", made.text, made.answer, {"level": made.level, "solution": made.solution})
