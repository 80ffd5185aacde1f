"""Random Pyro programs under every algorithm: ``python -m tests.inference.random_programs --programs 10000 --seed 0``.

Programs come from tests/helpers/program_strategies.py, exact answers from program_oracle.py (plain Python), cells from program_cells.py;
how a cell is judged, and how often a right one passes for wrong, stands there. A failing program is shrunk and printed as code that runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.helpers.program_ast import AnyProgram
from tests.helpers.program_cells import CELLS, CHAIN, Cell
from tests.helpers.program_check import Checker
from tests.helpers.program_code import build, code_of
from tests.helpers.program_features import FEATURES
from tests.helpers.program_mutants import Case, cases, found_by
from tests.helpers.program_shrink import shrink
from tests.helpers.program_strategies import random_program

CELLS_PER_PROGRAM = 30
"""10 000 programs then take about an hour on two cores."""


def run_program(
    index: int, seed: int, names: list[str] | None = None, count: int = CELLS_PER_PROGRAM, effort: float = 1.0
) -> dict[str, Any]:
    """One program under its cells, as plain values.

    :param list names: cells to choose from; all by default.
    :param int count: of cells.
    """
    start = time.process_time()
    program, choices = random_program(seed, index)
    checker = Checker(program, f"{seed}/{index}", effort)
    report = checker.run(some_cells(checker, names or list(CELLS), count))
    failures = [{"cell": failure.cell, "what": failure.what} for failure in report.failures]
    result = {
        "index": index,
        "cells": report.checked,
        "tests": report.tests,
        "passed over": len(CELLS) - report.checked,
        "features": sorted(program.features),
        "seconds": time.process_time() - start,
        "failures": failures,
    }
    if failures:
        result["code"] = shrunk(choices, seed, index, failures[0]["cell"], effort)
    return result


def some_cells(checker: Checker, names: list[str], count: int) -> list[str]:
    """A random part of the cells that apply to a program, the same in every run; chains, ten times dearer, are less likely than others.

    Of N cells with weights w, those with the largest u^(1/w): Efraimidis and Spirakis (2006).
    """
    possible = [name for name in names if checker.wanted(name, CELLS[name]) is not None]
    rng = random.Random(f"{checker.seed}/cells")
    keys = {name: rng.random() ** (1.0 if CELLS[name].kind == CHAIN else 1.0 / 3.0) for name in CELLS}
    chosen = set(sorted(possible, key=lambda name: keys[name])[-count:])
    return [name for name in possible if name in chosen]


def shrunk(choices: list[int], seed: int, index: int, cell: str, effort: float) -> str:
    """The smallest program found on which a cell fails, as code, with what is wrong."""

    def what(program: AnyProgram) -> str | None:
        return Checker(program, f"{seed}/{index}", effort).check(cell, CELLS[cell])

    kind = kind_of(what(random_program(seed, index)[0]))
    program = shrink(choices, FEATURES, lambda smaller: kind_of(what(smaller)) == kind)
    answer = Checker(program, f"{seed}/{index}", effort).answer
    exact = [f"# exact evidence: {', '.join(f'{z:.6g}' for z in answer.evidence)}"]
    exact += [
        f"# exact P({statistic}): {', '.join(f'{p:.6g}' for each in means for p in each)}" for statistic, means in answer.means.items()
    ]
    return "\n".join([f"# {cell}: {what(program)}", *exact, code_of(program)])


def kind_of(what: str | None) -> str:
    """The class of an error, or the kind of a wrong number; empty where nothing is wrong."""
    return "" if not what else "z" if "z = " in what else what.split(":")[0].split(",")[0]


# Many programs ---------------------------------------------------------------------------------------------------------------------------


def results(todo: Iterable[int], work: Any, workers: int) -> Iterator[dict[str, Any]]:
    """In any order; worker processes are renewed, so that memory stays bounded."""
    if workers == 1:
        yield from map(work, todo)
        return
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,), maxtasksperchild=200) as pool:
        yield from pool.imap_unordered(work, todo)


def finished(path: Path | None) -> dict[int, dict[str, Any]]:
    """Programs that an earlier run wrote down."""
    if path is None or not path.exists():
        return {}
    return {line["index"]: line for line in map(json.loads, path.read_text().splitlines())}


def fuzz(arguments: argparse.Namespace) -> int:
    before = finished(arguments.resume)
    todo = [k for k in arguments.only or range(arguments.start, arguments.start + arguments.programs) if k not in before]
    totals: Counter[str] = Counter()
    for line in before.values():
        totals.update(counts(line))
    start = time.monotonic()
    work = partial(
        run_program,
        seed=arguments.seed,
        names=arguments.cells,
        count=arguments.cells_per_program,
        effort=arguments.effort,
    )
    with arguments.resume.open("a") if arguments.resume else nullcontext() as log:
        for k, line in enumerate(results(todo, work, arguments.workers), 1):
            totals.update(counts(line))
            if log is not None:
                log.write(json.dumps(line) + "\n")
                log.flush()
            report_failures(line, arguments.seed)
            if k % arguments.every == 0 or k == len(todo):
                passed = time.monotonic() - start
                print(f"{summary(totals)}; {passed / 3600:.2f} hours, {k / passed:.2f} programs a second", flush=True)
    return int(totals["failures"] > 0)


def report_failures(line: dict[str, Any], seed: int) -> None:
    for failure in line["failures"]:
        print(f"\nFAILED program {line['index']} of seed {seed}, {failure['cell']}: {failure['what']}")
    if "code" in line:
        print(f"\n{line['code']}", flush=True)


def counts(line: dict[str, Any]) -> dict[str, int]:
    return {
        "programs": 1,
        "cells": line["cells"],
        "tests": line["tests"],
        "passed over": line["passed over"],
        "failures": len(line["failures"]),
    }


def summary(totals: Counter[str]) -> str:
    return ", ".join(f"{totals[name]} {name}" for name in ("programs", "cells", "tests", "passed over", "failures"))


# Mutants ---------------------------------------------------------------------------------------------------------------------------------


def rejects(case: Case, name: str, program: AnyProgram, seed: str) -> bool:
    """Whether the fuzz rejects a wrong engine on a program."""

    def check(cell: Cell, changed: AnyProgram | None) -> bool:
        checker = Checker(program, seed)
        if changed is not None:
            checker.model, _ = build(changed)
        what = checker.check(name, cell) or ""
        assert not what.startswith(("TypeError", "AttributeError", "NameError")), f"the case {name!r} does not run: {what}"
        return bool(what)

    return found_by(case, check, program)


def programs_needed(name: str, case: Case, seed: int, most: int, start: int = 0) -> int | None:
    """How many programs are drawn until the fuzz rejects a wrong engine."""
    for k in range(start, start + most):
        program, _ = random_program(seed, k)
        if rejects(case, name, program, f"{seed}/{k}"):
            return k + 1
    return None


def report_mutants(seed: int, most: int) -> int:
    missed = 0
    for name, case in cases().items():
        start = time.monotonic()
        needed = programs_needed(name, case, seed, most)
        missed += needed is None
        print(f"{name:55} {needed if needed is not None else f'NOT within {most}'!s:>6} {time.monotonic() - start:6.1f} s", flush=True)
    return int(missed > 0)


def parsed(command: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first program")
    parser.add_argument("--only", type=int, nargs="+", help="these programs only")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="file of finished programs; the same command continues")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), metavar="CELL", help="these cells only")
    parser.add_argument("--cells-per-program", type=int, default=CELLS_PER_PROGRAM, help="a random part of the cells for each program")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the replicas")
    parser.add_argument("--every", type=int, default=20, help="programs between lines of progress")
    parser.add_argument("--mutants", action="store_true", help="how many programs find each wrong engine")
    return parser.parse_args(command)


def main(command: list[str] | None = None) -> int:
    arguments = parsed(command)
    torch.set_num_threads(1)
    if arguments.mutants:
        return report_mutants(arguments.seed, arguments.programs)
    return fuzz(arguments)


if __name__ == "__main__":
    sys.exit(main())
