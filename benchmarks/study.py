"""The study of docs/study.md: every method at budgets of 1 to 64 generations on held-out demo problems.

Runs ``ppl_llm.evaluation.evaluate`` once per setting into ``runs/study/<setting>`` (what is there is not done again), and writes the
tables of the document between its markers.

    python benchmarks/study.py                # 300 problems, 3 seeds: about an hour on two cores
    python benchmarks/study.py --problems 60 --seeds 1
    python benchmarks/study.py --tables       # only the tables, from the records that are there
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ppl_llm.datasets import load_problems
from ppl_llm.evaluation.evaluate import Progress, evaluate
from ppl_llm.evaluation.records import RECORDS
from ppl_llm.evaluation.report import write
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.source import Models
from ppl_llm.evaluation.tables import accuracy_rows, as_text, cost_rows, difference_rows, offline_rows, ratio_rows

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "study.md"
BASE = Models(max_steps=16, max_tokens=64)
WEAK = replace(BASE, prm="demo-weak")
SAMPLED = ("importance", "self-consistency", "best-of-n", "weighted-best-of-n")


@dataclass(frozen=True)
class Setting:
    """One run of the study."""

    name: str
    line: str
    models: Models
    methods: tuple[str, ...]
    budgets: tuple[int, ...] = (1, 4, 16, 64)


SETTINGS = [
    Setting(
        "exact",
        "strong reward model, target p(x) prod r_t",
        BASE,
        (*SAMPLED, "smc", "particle-gibbs", "beam-search", "dvts", "tempered-smc", "parallel-tempering"),
    ),
    Setting("twisted", "strong reward model, target p(x) min r_t", replace(BASE, preset="twisted"), ("smc", "beam-search", "dvts")),
    Setting("as_paper", "strong reward model, weights of the released code", replace(BASE, preset="as_paper"), ("smc",)),
    Setting("its_hub", "strong reward model, weights of the authors' library", replace(BASE, preset="its_hub"), ("smc",)),
    Setting("weak", "weak reward model, target p(x) prod r_t", WEAK, (*SAMPLED, "smc", "beam-search", "dvts")),
    Setting("weak-twisted", "weak reward model, target p(x) min r_t", replace(WEAK, preset="twisted"), ("smc",)),
    Setting("weak-as_paper", "weak reward model, weights of the released code", replace(WEAK, preset="as_paper"), ("smc",)),
]


def run(folder: Path, problems: int, seeds: int, workers: int, budgets: tuple[int, ...]) -> None:
    """Everything that is missing."""
    tasks = list(load_problems("demo", limit=problems))
    for setting in SETTINGS:
        began = time.perf_counter()

        def report(progress: Progress, setting: Setting = setting, began: float = began) -> None:
            if progress.done % 20 == 0:
                print(
                    f"{setting.name}: {progress.skipped + progress.done} of {progress.total}, {time.perf_counter() - began:.0f} s",
                    file=sys.stderr,
                )

        evaluate(
            tasks,
            setting.models,
            folder / setting.name,
            methods=setting.methods,
            budgets=budgets,
            seeds=range(seeds),
            group_size=10,
            workers=workers,
            report=report,
        )


def tables(folder: Path) -> str:
    """Of all settings that have records."""
    parts = []
    for setting in SETTINGS:
        path = folder / setting.name
        if not (path / RECORDS).exists():
            continue
        results = Results.read(path)
        write(path)
        size = f"{len(results.problems)} problems, {len(results.seeds)} seeds"
        parts.append(f"### {setting.name}: {setting.line}\n\n{size}.\n\n{as_text(accuracy_rows(results))}")
        if setting.name in ("exact", "weak"):
            parts += [as_text(difference_rows(results, "importance")), as_text(offline_rows(results)), as_text(cost_rows(results))]
        if setting.name == "exact":
            parts.append(as_text(ratio_rows(results)))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budgets", default="1,4,16,64")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if not arguments.tables:
        budgets = tuple(int(budget) for budget in arguments.budgets.split(","))
        run(arguments.out, arguments.problems, arguments.seeds, arguments.workers, budgets)
    text = tables(arguments.out)
    if DOCUMENT.exists():
        start, end = "<!-- tables -->\n", "<!-- end of tables -->"
        before, rest = DOCUMENT.read_text().split(start)
        DOCUMENT.write_text(before + start + "\n" + text + "\n\n" + end + rest.split(end)[1])
    else:
        print(text)


if __name__ == "__main__":
    main()
