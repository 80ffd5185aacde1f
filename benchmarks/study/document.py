"""The document: its tables stand between comments that name them."""

from __future__ import annotations

import re
from pathlib import Path

from .tables import Study, table

_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def refreshed(text: str, study: Study) -> str:
    """A document with every table written anew.

    :raises KeyError: for a table or setting that there is not.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}\n{table(study, match[2])}\n\n{match[3]}", text)


def refresh(path: Path, study: Study) -> None:
    """The same for a file."""
    path.write_text(refreshed(path.read_text(encoding="utf-8"), study), encoding="utf-8")
