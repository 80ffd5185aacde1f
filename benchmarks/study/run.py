"""Runs what is missing of the study."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch

from ppl_llm.evaluation.records import RecordStore
from ppl_llm.evaluation.votes import fingerprint
from ppl_llm.evaluation.work import SHARED, execute, groups, plan
from ppl_llm.tasks import Problem, load_problems

from .models import LIMITS, Networks, steps_and_scores
from .settings import PASSES, SETTINGS, Setting

GROUP = 25
"""Problems that share a batch, and the tables of prefixes."""

TIMES, STEPS = "times.jsonl", "steps.jsonl"
Task = tuple[int, int]  # pass, group


def tasks(passes: Sequence[Sequence[Setting]], limit: int | None) -> list[Task]:
    """Groups of each pass, the passes one after another."""
    return [(i, group) for i, settings in enumerate(passes) for group in range(len(_parts(_most(settings, limit))))]


def chosen(settings: Collection[str] | None, budgets: Collection[int] | None) -> list[list[Setting]]:
    """The passes with some of their settings and budgets.

    :param settings: names; all by default.
    :param budgets: all by default.
    :raises ValueError: for an unknown name, or budgets that a setting does not have.
    """
    if unknown := sorted(set(settings or ()) - {setting.name for setting in SETTINGS}):
        raise ValueError(f"no setting {unknown[0]!r}; see SETTINGS in benchmarks/study/settings.py")
    passes = []
    for each in PASSES:
        kept = [setting for setting in each if settings is None or setting.name in settings]
        if budgets is not None:
            kept = [replace(setting, budgets=tuple(b for b in setting.budgets if b in budgets)) for setting in kept]
            if none := [setting for setting in kept if not setting.budgets]:
                raise ValueError(f"setting {none[0].name!r} has none of the budgets {', '.join(map(str, budgets))}")
        if kept:
            passes.append(kept)
    return passes


def run(folder: Path, workers: int, limit: int | None, report: Callable[[str], None], passes: Sequence[Sequence[Setting]] = PASSES) -> None:
    """Do what is missing; what is there is not done again.

    :param int workers: processes.
    :param limit: problems at most of each setting.
    :param passes: as :func:`chosen`.
    """
    todo = [(folder, task, limit, passes[task[0]]) for task in tasks(passes, limit)]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_start) as pool:
        for done, (which, group) in enumerate(pool.imap_unordered(_work, todo), start=1):
            report(f"{done} of {len(todo)} (pass {which + 1}, group {group}), {time.perf_counter() - began:.0f} s")


def _most(settings: Sequence[Setting], limit: int | None) -> int:
    most = max(setting.problems for setting in settings)
    return most if limit is None else min(most, limit)


def _parts(number: int) -> list[list[Problem]]:
    return groups(list(load_problems("demo", limit=number)), GROUP)


_networks: Networks


def _start() -> None:
    global _networks
    torch.set_num_threads(1)
    _networks = Networks()


def _work(job: tuple[Path, Task, int | None, Sequence[Setting]]) -> Task:
    folder, (which, group), limit, settings = job
    for setting in settings:
        parts = _parts(_most([setting], limit))
        if group < len(parts):
            _setting(folder / setting.name / f"{group:02d}", setting, group, parts[group])
    _networks.forget()
    return which, group


def _setting(folder: Path, setting: Setting, group: int, problems: list[Problem]) -> None:
    """One setting on one group of problems, in a folder of its own."""
    configuration = {
        # What runs may grow; what it runs on may not change.
        **{name: value for name, value in asdict(setting).items() if name not in ("methods", "budgets", "seeds", "problems", "line")},
        **LIMITS,
        "problems": fingerprint([[p.id, p.text, str(p.answer)] for p in problems]),
        "versions": {name: version(name) for name in ("ppl-llm", "torch", "transformers", "pyro-ppl")},
    }
    units = [unit for unit in plan(group + 1, setting.methods, setting.budgets, setting.seeds) if unit.group == group]
    with RecordStore(folder, configuration) as store:
        model = None
        for unit in units:
            if all(key in store for key in unit.keys(problems)):
                continue
            model = model or _networks.model(setting)
            clock, cpu = time.perf_counter(), time.process_time()
            records = execute(unit, model, problems)
            spent = {"seconds": round(time.perf_counter() - clock, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
            store.append([_short(record) for record in records])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # of the process so far; kilobytes on Linux
            _note(folder / TIMES, {"methods": unit.methods, "budgets": unit.budgets, "seed": unit.seed, **spent, "peak_mib": peak})
        if not (folder / STEPS).exists() and SHARED in setting.methods:
            pyro.set_rng_seed(group)
            scored = steps_and_scores(model or _networks.model(setting), [problem.text for problem in problems])
            lines = [json.dumps([[rights, [round(z, 4) for z in log_odds]] for rights, log_odds in one]) for one in scored]
            (folder / STEPS).write_text("\n".join(lines) + "\n")


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """Without what no table needs."""
    unwanted = ("answers", "ess") if record["method"] == SHARED else ("answers", "ess", "candidates")
    return {name: value for name, value in record.items() if name not in unwanted}


def _note(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a") as lines:
        lines.write(json.dumps(line) + "\n")
