"""Problems from rows: JSONL files, data sets of the Hugging Face Hub, or rows in memory."""

from __future__ import annotations

import codecs
import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..answers.extraction import extract_answer
from .base import Problem

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""Name of a column, or a function of the row."""

_PROBLEM = ("problem", "question", "text")
_ANSWER = ("answer", "final_answer")
_ID = ("id", "unique_id")


@dataclass(frozen=True)
class RowTask:
    """Rows as problems; the parameters are those of :func:`ppl_llm.load_problems`.

    :param bool extract: the answer's field holds a whole solution, such as gsm8k's; what :func:`~ppl_llm.extract_answer` finds in it is the
        right answer.
    """

    source: str | Path | Iterable[Row]
    problem: Field | None = None
    answer: Field | None = None
    id: Field | None = None
    level: Field | None = None
    split: str = "test"
    config: str | None = None
    extract: bool = False

    def problems(self, limit: int | None = None) -> Iterator[Problem]:
        """
        :raises OSError: at once, if there is no such file or data set.
        :raises ImportError: at once, for a data set on the Hub without ``datasets``.
        :raises ValueError: for a row that is not a problem, naming its line.
        """
        return itertools.islice(self._problems(self._rows()), limit)

    def _rows(self) -> Iterable[tuple[str, Row]]:
        if not isinstance(self.source, (str, Path)):
            return ((f"row {number}", row) for number, row in enumerate(self.source, 1))
        path = Path(self.source).expanduser()
        return _lines(path) if path.is_file() else _hub(self.source, self.split, self.config)

    def _problems(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Problem]:
        seen: dict[str, str] = {}
        for number, (where, row) in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise ValueError(f"{where}: expected an object with named fields, got {type(row).__name__}")
            text = _value(row, self.problem, _PROBLEM, where, "problem")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where}: the problem must be a text that is not empty, got {text!r}")
            right = _single(_value(row, self.answer, _ANSWER, where, "answer", optional=self.answer is None), where)
            if self.extract and right is not None:
                solution, right = str(right), extract_answer(str(right))
                if right is None:
                    raise ValueError(f"{where}: no answer is found in the solution {solution[-80:]!r}")
            name = _plain(_value(row, self.id, _ID, where, "id", optional=self.id is None))
            name = str(number) if name is None else name
            if name in seen:
                raise ValueError(f"{where}: the id {name!r} is already that of {seen[name]}")
            seen[name] = where
            used = {_column(row, given, known) for given, known in ((self.problem, _PROBLEM), (self.answer, _ANSWER), (self.id, _ID))}
            metadata = {key: value for key, value in row.items() if key not in used}
            difficulty = _value(row, self.level, ("level",), where, "level", optional=self.level is None)
            if difficulty is not None:
                metadata["level"] = difficulty
            yield Problem(name, text, _plain(right), metadata)


def _column(row: Row, given: Field | None, known: tuple[str, ...]) -> str | None:
    """The column that a value is taken from, ``None`` if there is none; of the known names the first that is not null."""
    if given is not None:
        return given if isinstance(given, str) and given in row else None
    named = [name for name in known if name in row]
    return next((name for name in named if row[name] is not None), named[0] if named else None)


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


def _single(answer: Any, where: str) -> Any:
    """A right answer, taken out of a list that holds nothing else.

    :raises ValueError: for several answers, for an object, and for what is not a number.
    """
    while isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, (list, tuple, Mapping)):
        raise ValueError(
            f"{where}: the answer must be one text or number, got {answer!r:.200}; pass answer=... a function of the row that gives it"
        )
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"{where}: the answer {answer} is not a number; write it as a text")
    return answer


def _plain(value: Any) -> str | None:
    """A value as text; a number without an exponent, a whole one without its decimal point."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    return None if value is None else str(value)


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSONL file in UTF-8, with or without a byte order mark, or in UTF-16 with one."""
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        # Line by line, so that a byte that is not UTF-8 is found in its line.
        lines: Iterable[bytes] = _from_utf16(file.read(), path).split(b"\n") if wide else file
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1}); convert the file") from error
            if text.strip():
                yield where, _row(text, where)


def _from_utf16(content: bytes, path: Path) -> bytes:
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError as error:
        line = content[: error.start].decode("utf-16", "ignore").count("\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-16 ({error.reason}); convert the file to UTF-8") from error


def _row(text: str, where: str) -> Row:
    try:
        row: Row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or lists within lists
        raise ValueError(f"{where}: {error}") from error
    return row


def _hub(source: str | Path, split: str, config: str | None) -> Iterator[tuple[str, Row]]:
    name = str(source)
    if isinstance(source, Path) or name.endswith((".jsonl", ".json")) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"no file {name!r}; give a JSONL file, the name of a data set on the Hugging Face Hub, reasoning-gym:TASK, or 'demo'"
        )
    near = difflib.get_close_matches(name.partition(":")[0], ["demo", "reasoning-gym"], n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    if find_spec("datasets") is None:
        raise ImportError(
            f'{name!r} is no file, and data sets of the Hugging Face Hub need datasets: pip install "ppl-llm[datasets]"{meant}'
        )
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:  # what it raises depends on the network, the name, the configuration and the split
        if not near:
            raise
        raise type(error)(f"{name!r} is no file, and no data set of the Hugging Face Hub that can be read ({error}){meant}") from error
    return ((f"{name} ({split}), row {number}", row) for number, row in enumerate(rows, 1))
