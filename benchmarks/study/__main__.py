"""The study of docs/study.md: ``python -m benchmarks.study`` runs what is missing, then writes its tables and figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .run import run

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--problems", type=int, help="at most so many of each setting")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", help="where the records are")
    arguments = parser.parse_args()
    run(arguments.runs, arguments.workers, arguments.problems, lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
