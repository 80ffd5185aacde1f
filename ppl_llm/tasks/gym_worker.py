"""The process that makes and judges problems of reasoning-gym, run by ``WorkerProcess``; imports nothing of this package.

Reads one JSON request ``[kind, timeout, values]`` per line from standard input and writes one JSON reply per line to standard output.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from functools import lru_cache
from importlib.metadata import version
from typing import Any

MEMORY = 8 * 2**30
"""Bytes of address space; an answer whose judgement needs more is wrong."""


class Refused(Exception):
    """A request that makes no sense."""


@lru_cache(maxsize=8)
def data_set(name: str, options: str) -> Any:
    """A procedural data set of a configuration given as JSON."""
    from reasoning_gym.factory import DATASETS

    known, given = sorted(DATASETS), json.loads(options)
    if name not in DATASETS:
        raise Refused({"unknown": "task of reasoning-gym", "name": name, "known": known})
    kind, config = DATASETS[name]
    fields = [field.name for field in dataclasses.fields(config)]
    for option in given:
        if option not in fields:
            raise Refused({"unknown": f"option of reasoning-gym:{name}", "name": option, "known": fields})
    try:
        made = config(**given)
        if hasattr(made, "validate"):
            made.validate()
        return kind(config=made)
    except Exception as error:  # whatever its validation raises, mostly AssertionError
        raise Refused({"refused": f"{type(error).__name__}: {error}"}) from error


def describe(name: str, options: str) -> dict[str, Any]:
    """The version, and the whole configuration with what was not given."""
    made = data_set(name, options)
    return {"version": version("reasoning-gym"), "config": dataclasses.asdict(made.config), "size": len(made)}


@lru_cache(maxsize=4096)
def entry(name: str, options: str, index: int) -> Any:
    """A problem as reasoning-gym has it."""
    try:
        return data_set(name, options)[index]
    except Exception as error:  # configurations that its validation passes and its generator cannot serve
        raise Refused({"refused": f"problem {index}: {type(error).__name__}: {error}"}) from error


def problem(name: str, options: str, index: int, level: str | None) -> dict[str, Any]:
    """Its text, answer and level."""
    made = entry(name, options, index)
    difficulty = made["metadata"].get("difficulty")  # of most tasks a dictionary of their settings, of some a number
    found = {**(difficulty if isinstance(difficulty, dict) else {}), **made["metadata"]}
    if level is not None and level not in found:
        raise Refused({"unknown": f"level of reasoning-gym:{name}", "name": level, "known": sorted(map(str, found))})
    return {"question": made["question"], "answer": made["answer"], "level": None if level is None else found[level]}


def score(name: str, options: str, wanted: str, index: int, answer: str) -> float:
    """What its own verifier gives for an answer; one that it cannot read is wrong."""
    if version("reasoning-gym") != wanted:
        raise Refused({"refused": f"the problems are of version {wanted}, but here is {version('reasoning-gym')}; install the same"})
    made = entry(name, options, index)
    try:
        return float(data_set(name, options).score_answer(answer=answer, entry=made))
    except Exception:  # the verifiers parse whatever a language model wrote, and raise what their parsers raise
        return 0.0


def limit(seconds: float) -> None:
    """Let the kernel end this process should it work on one request for much longer than that: the process that asked may be gone."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))
    except (ImportError, OSError, ValueError):
        return  # not on this system


def main() -> None:
    logging.disable()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing but replies may reach the reader
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass

    def reply(result: Any) -> None:
        replies.write(json.dumps(result, default=str) + "\n")
        replies.flush()

    import reasoning_gym  # noqa: F401

    reply("ready")
    for line in sys.stdin:
        kind, seconds, values = json.loads(line)
        limit(seconds)
        compute: Any = {"describe": describe, "problem": problem, "score": score}[kind]
        try:
            reply(compute(*values))
        except Refused as refusal:
            reply(refusal.args[0])


if __name__ == "__main__":
    main()
