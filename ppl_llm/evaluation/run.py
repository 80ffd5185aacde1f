"""From problems to records."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..methods import check_proposes, get_method
from ..reward.choice import no_reward
from ..tasks.base import Problem
from .pool import Pool
from .ray_pool import RayPool
from .records import RecordStore, append_whole
from .source import Models
from .votes import fingerprint
from .work import Unit, groups, plan

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far an evaluation has come.

    :ivar int done: units done in this run.
    :ivar int skipped: units found complete.
    :ivar int total: units in all.
    :ivar dict right: correct and all records of this run, by method and budget.
    :ivar dict quarantined: units given up after three tries, with the last error.
    """

    done: int = 0
    skipped: int = 0
    total: int = 0
    right: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    quarantined: dict[Unit, str] = field(default_factory=dict)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Count records."""
        for record in records:
            hits, total = self.right.get((record["method"], record["budget"]), (0, 0))
            self.right[record["method"], record["budget"]] = (hits + record["correct"], total + 1)


def evaluate(
    problems: Sequence[Problem],
    models: Models,
    out: str | Path,
    *,
    methods: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int] = (0,),
    group_size: int = 8,
    workers: int = 0,
    ray: str | None = None,
    shard: tuple[int, int] | None = None,
    report: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] = _log.warning,
) -> Progress:
    """Run every method at every budget on every problem; what ``out`` already holds is not done again.

    Problems are worked on in fixed groups that share a batch, each with its own seeds, so that an interrupted evaluation ends with the
    same records as an uninterrupted one. More methods, budgets or seeds may be added later.

    :param problems: with an ``id``, ``text`` and gold ``answer``.
    :param Models models: what to run; loaded once in each process.
    :param out: the folder of the records.
    :param methods: names, see :data:`ppl_llm.methods.BUDGETED`.
    :param budgets: completions per problem; a method leaves out those below its least.
    :param seeds: each a repetition of everything.
    :param int group_size: problems per batch.
    :param int workers: processes; 0 runs in this one.
    :param str ray: address of a Ray cluster, ``auto`` or ``local``; its actors do the work (extra ``ray``).
    :param tuple shard: this process's rank and the number of processes that share the work and the folder; by default what ``torchrun``
        and ``accelerate launch`` set in the environment.
    :param report: called after every unit.
    :param note: called before the first problem with what should be known then, such as that solutions may be longer than the reward model
        reads; logged by default.
    :returns: what was done. A unit that fails three times is given up and reported in ``quarantined``.
    :raises ValueError: for bad arguments, or a folder with records of other settings.
    """
    _check(problems, budgets, group_size, workers)
    models.turns.check_problems(problems)
    scored = [name for name in methods if (m := get_method(name)).method.needs_reward(m.model_options.get("power", models.power))]
    if models.chosen_reward.kind == "none" and scored and models.constraint is None:
        raise no_reward(f"method {scored[0]!r}")
    if models.constraint is not None:
        check_proposes(methods, "json_schema, regex and choices", "method ")
    models.check_methods(methods, budgets)
    if not any(get_method(name).method.scored for name in methods):
        models = models.without_reward()
    rank, world = _shard() if shard is None else shard
    parts = groups(problems, group_size)
    units = list(plan(len(parts), methods, budgets, seeds))[rank::world]
    configuration = {
        **asdict(models),
        "reward": str(models.chosen_reward),
        "prm": models.named_prm,
        "group_size": group_size,
        "problems": fingerprint([[p.id, p.text, str(p.answer), *_digests(p)] for p in problems]),
        "num_problems": len(problems),
        **_verifiers(problems),
        **({"files": files} if (files := models.files()) else {}),
        "versions": {name: version(name) for name in ("ppl-llm", "torch", "transformers", "pyro-ppl")},
    }
    progress = Progress(total=len(units))
    with RecordStore(out, configuration, rank) as store:
        if rank == 0:
            _note_run(store.folder, methods, budgets, seeds)
        missing = [unit for unit in units if any(key not in store for key in unit.keys(parts[unit.group]))]
        progress.skipped = len(units) - len(missing)
        if missing and rank == 0 and (told := models.note()) is not None:
            note(told)
        with _pool(models, parts, workers, ray) as pool:
            for outcome in pool.run(missing):
                if outcome.error is not None:
                    progress.quarantined[outcome.unit] = outcome.error
                else:
                    stamped = [{**record, "configuration": fingerprint(configuration)} for record in outcome.records]
                    store.append(stamped)
                    progress.add(outcome.records)
                progress.done += 1
                if report is not None:
                    report(progress)
    return progress


def _digests(problem: Problem) -> list[str]:
    """Of what a verifier judges by, where that is a problem's own."""
    each = dict.fromkeys(getattr(judge, "digest", None) for judge in (problem.verifier, problem.critic))
    return [digest for digest in each if digest is not None]


def _verifiers(problems: Sequence[Problem]) -> dict[str, Any]:
    """What judges the answers, where it is more than a comparison."""
    found = {json.dumps(p.verifier.description, sort_keys=True) for p in problems if p.verifier is not None}
    return {"verifiers": [json.loads(text) for text in sorted(found)]} if found else {}


def _check(problems: Sequence[Problem], budgets: Sequence[int], group_size: int, workers: int) -> None:
    if not problems:
        raise ValueError("there are no problems to evaluate")
    ids = [problem.id for problem in problems]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"the problem id {twice!r} occurs more than once; ids identify records")
    bad = [budget for budget in budgets if not isinstance(budget, int) or budget < 1]
    if not budgets or bad:
        raise ValueError(f"budgets must be integers of at least 1, got {bad[0] if bad else 'none'!r}")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size!r}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers!r}")


def _pool(models: Models, parts: Sequence[Sequence[Problem]], workers: int, ray: str | None) -> Pool | RayPool:
    return Pool(models, parts, workers) if ray is None else RayPool(models, parts, ray, workers)


def _shard() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started.

    :raises ValueError: if the environment holds something else.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ValueError(f"RANK={rank!r} and WORLD_SIZE={world!r} do not say which process of how many this is; unset them or use torchrun")
    return int(rank), int(world)


def _note_run(folder: Path, methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int]) -> None:
    """A line on each run: what was asked for, and on what machine."""
    note = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv[1:],
        "methods": list(methods),
        "budgets": list(budgets),
        "seeds": list(seeds),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    path = folder / "runs.jsonl"
    with open(path, "ab", buffering=0) as runs:
        append_whole(runs.fileno(), path, json.dumps(note) + "\n")
