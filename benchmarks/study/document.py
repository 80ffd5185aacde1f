"""The document: its tables, and the figures that its text quotes from them, stand between comments that name them.

A table is what stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. In the text, ``<!-- cell: NAME | ROW | COLUMN -->``
and ``<!-- / -->`` hold a cell as it is, ``<!-- point: NAME | ROW | COLUMN; COLUMN -->`` the estimates alone of one or more cells.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ppl_llm.evaluation.tables import as_text

from . import later_tables, tables
from .tables import Study

TABLES = {**tables.TABLES, **later_tables.TABLES}

_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_VALUE = re.compile(r"(<!-- (cell|point): ([\w-]+) \| ([^|]+?) \| ([^|]+?) -->).*?(<!-- / -->)", re.DOTALL)


def refreshed(text: str, study: Study) -> str:
    """A document with every table and every quoted figure up to date.

    :raises KeyError: for a table, row, column or setting that there is not.
    """

    @cache
    def cells(name: str) -> dict[tuple[str, str], str]:
        header, *rows = TABLES[name](study)
        return {(row[0].strip("`"), column): cell for row in rows for column, cell in zip(header, row, strict=True)}

    def value(match: re.Match[str]) -> str:
        begin, kind, name, row, columns, end = match.groups()
        found = [cells(name)[row, column.strip()] for column in columns.split(";")]
        return f"{begin}{', '.join(map(_point, found) if kind == 'point' else found)}{end}"

    text = _BLOCK.sub(lambda match: f"{match[1]}\n{as_text(TABLES[match[2]](study))}\n\n{match[3]}", text)
    return _VALUE.sub(value, text)


def _point(cell: str) -> str:
    """An estimate without its interval and without a leading zero: ``0.690 [0.636, 0.740]`` is ``.690``."""
    return re.sub(r"^([+-]?)0\.", r"\1.", cell.strip("*").split(" ")[0])


def refresh(path: Path, study: Study) -> None:
    """The same for a file."""
    path.write_text(refreshed(path.read_text(encoding="utf-8"), study), encoding="utf-8")
