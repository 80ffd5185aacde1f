"""Memory of a long evaluation: resident memory must be flat after warm-up.

Runs ``ppl_llm.evaluation.evaluate`` on the demo models over and over in this process, each time into a new folder that is then removed, and
reads the resident memory after every unit of work. Prints it by tenths of the run, and its growth per hour after the first fifth.

    python benchmarks/soak.py --minutes 30
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import common

from ppl_llm.evaluation import Models, evaluate
from ppl_llm.tasks.load import load_problems

METHODS = ("importance", "smc", "particle-gibbs", "beam-search", "dvts", "tempered-smc", "parallel-tempering")


class _Over(Exception):
    """The time is up."""


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--budget", type=int, default=16)
    arguments = parser.parse_args()
    common.single_thread()
    problems = list(load_problems("demo", limit=40))
    seen: list[tuple[float, float]] = []
    began = time.monotonic()

    def look(progress: object) -> None:
        minutes = (time.monotonic() - began) / 60
        seen.append((minutes, resident_mib()))
        if minutes > arguments.minutes:
            raise _Over

    try:
        for seed in itertools.count():
            with tempfile.TemporaryDirectory() as folder:
                models = Models(max_steps=16, max_tokens=64)
                evaluate(problems, models, folder, methods=METHODS, budgets=[arguments.budget], seeds=[seed], group_size=8, report=look)
    except _Over:
        pass
    last = seen[-1][0]
    rows = []
    for tenth in range(10):
        part = [mib for minutes, mib in seen if tenth <= 10 * minutes / last < tenth + 1 or (tenth == 9 and minutes == last)]
        if part:
            rows.append({"from minute": tenth * last / 10, "units": len(part), "resident MiB": common.Spread.of(part)})
    late = [(minutes / 60, mib) for minutes, mib in seen if minutes > last / 5]
    growth = statistics.linear_regression(*zip(*late, strict=True)).slope
    print(common.table(rows))
    print(f"\n{len(seen)} units in {last:.1f} minutes; {growth:+.1f} MiB per hour after the first fifth, by least squares")
    settings = {"minutes": arguments.minutes, "budget": arguments.budget, "growth_mib_per_hour": growth, "units": len(seen)}
    common.record("soak", rows, settings)


if __name__ == "__main__":
    main()
