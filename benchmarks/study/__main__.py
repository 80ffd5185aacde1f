"""The study of docs/study.md: runs what is missing of it, then writes the outcomes, tables and figures of the document.

python -m benchmarks.study                   # everything; what is there is not done again
python -m benchmarks.study --from records    # outcomes, tables and figures of the records that are there
python -m benchmarks.study --from outcomes   # tables and figures from docs/study/outcomes.jsonl.gz alone
python -m benchmarks.study --from outcomes --figure map
python -m benchmarks.study --problems 25 --runs runs/short --to runs/short    # a short one, which leaves the document alone
python -m benchmarks.study --settings strong-more,none-more --problems 60 --budgets 4,16    # a part, added to the document
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import document, figures, outcomes
from .run import chosen, run

ROOT = Path(__file__).parents[2]
FOLDER, SAVED = ROOT / "docs" / "study", "outcomes.jsonl.gz"
DOCUMENTS = (ROOT / "docs" / "study.md", ROOT / "README.md")
"""Whose tables and figures come from the outcomes in ``FOLDER``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--problems", type=int, help="at most so many of each setting")
    parser.add_argument("--settings", type=lambda text: text.split(","), help="names of benchmarks/study/settings.py, all by default")
    parser.add_argument("--budgets", type=lambda text: [int(b) for b in text.split(",")], help="all of each setting by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", help="where the records are")
    parser.add_argument("--to", type=Path, default=FOLDER, help="where outcomes and figures go")
    parser.add_argument("--from", choices=("start", "records", "outcomes"), default="start", dest="since", help="what to begin with")
    parser.add_argument("--figure", choices=tuple(figures.FIGURES), help="only this figure")
    arguments = parser.parse_args()
    if arguments.since == "start":
        passes = chosen(arguments.settings, arguments.budgets)
        run(arguments.runs, arguments.workers, arguments.problems, lambda line: print(line, file=sys.stderr, flush=True), passes)
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.since != "outcomes":
        outcomes.update(arguments.runs, arguments.to / SAVED)
    study = outcomes.load(arguments.to / SAVED)
    try:
        figures.draw(study, arguments.to, arguments.figure)
    except outcomes.MissingSetting as error:
        sys.exit(f"the outcomes are in {arguments.to / SAVED}, but not all figures can be drawn: {error}")
    if arguments.figure is None and arguments.to == FOLDER:
        for text in DOCUMENTS:
            document.refresh(text, study)


if __name__ == "__main__":
    main()
