"""Solutions of a run without an answer, and those with a wrong one, by their last lines."""

from __future__ import annotations

from .results import Results

Rows = list[list[str]]

_LINE = 100
"""Characters of a last line that are shown."""


def failures(results: Results, most: int = 20) -> list[tuple[str, Rows]]:
    """Titles and tables: solutions without an answer, and with a wrong one.

    :param int most: rows of each table.
    :raises ValueError: if the records hold no texts.
    """
    missing: Rows = []
    wrong: Rows = []
    texts = total = 0
    for cells in results.by_key.values():
        for record in cells.values():
            for candidate in record.get("candidates", ()):
                total += 1
                if "text" not in candidate:
                    continue
                texts += 1
                where = [str(record["problem"]), f"{record['method']} {record['budget']}", str(record["seed"])]
                line = _last_line(candidate["text"])
                if candidate["answer"] is None:
                    how = "ended" if candidate["finished"] else "cut off"
                    missing.append([*where, f"{how}, {candidate['tokens']} tokens", line])
                elif not results.is_right(record["problem"], candidate["answer"]):
                    wrong.append([*where, str(candidate["answer"]), str(record["gold"]), line])
    if not texts:
        raise ValueError("the records of this run hold no texts; run evaluate with --keep-texts")
    head = ["problem", "method", "seed"]
    return [
        (f"{len(missing)} of {total} solutions have no answer", [[*head, "how it ended", "last line"], *missing[:most]]),
        (f"{len(wrong)} of {total} solutions are wrong", [[*head, "answer", "right", "last line"], *wrong[:most]]),
    ]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-_LINE:] if lines else "(nothing)"
