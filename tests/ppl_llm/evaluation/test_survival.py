"""What becomes of an evaluation whose processes are killed or interrupted."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.evaluation import pool
from ppl_llm.evaluation.records import RECORDS, Key, read_records
from ppl_llm.evaluation.run import Progress
from ppl_llm.evaluation.source import Models
from tests.ppl_llm.evaluation.test_evaluate import comparable, run

COMMAND = [sys.executable, "-m", "ppl_llm.cli", "evaluate", "demo", "--limit", "8", "--methods", "importance,smc", "--budgets", "1,2"]
COMMAND += ["--seeds", "3", "--group-size", "1", "--max-steps", "6", "--max-tokens", "40"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Killer:
    """Kills one of the workers at a moment that the seed chooses."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.after = self.rng.randint(1, 5)
        self.victim: Any = None

    def __call__(self, progress: Progress) -> None:
        """:param Progress progress: after a unit."""
        if progress.done < self.after or self.victim is not None:
            return
        time.sleep(self.rng.uniform(0, 0.2))  # the workers continue meanwhile
        workers = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)
        assert len(workers) == 3
        self.victim = self.rng.choice(workers)
        os.kill(self.victim.pid, signal.SIGKILL)
        self.victim.join()


def killed(folder: Path, seed: int) -> Progress:
    """An evaluation by three workers of whom one is killed."""
    killer = Killer(seed)
    progress = run(folder, group_size=1, workers=3, report=killer)
    assert killer.victim.exitcode == -signal.SIGKILL and progress.done == progress.total == 12
    return progress


@pytest.mark.slow  # quicker: test_evaluate.py kills one worker of two and compares the records
def test_one_worker_of_three_killed(tmp_path: Path) -> None:
    run(tmp_path / "whole", group_size=1)
    assert killed(tmp_path / "killed", 0).quarantined == {}
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_worker_of_three_killed_at_other_moments(seed: int, tmp_path: Path) -> None:
    run(tmp_path / "whole", group_size=1)
    killed(tmp_path / "killed", seed)
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


@pytest.mark.slow
def test_a_pool_that_gives_up_at_the_first_death_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TRIES", 1)
    run(tmp_path / "whole", group_size=1)
    assert len(killed(tmp_path / "killed", 0).quarantined) == 1
    assert comparable(tmp_path / "killed") != comparable(tmp_path / "whole")


def living(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, pgrp = rest.split()[:3]
        if int(pgrp) == group and state != "Z":
            found.append(name)
    return found


def interrupted(folder: Path, workers: int, wait: float, after_records: bool) -> subprocess.CompletedProcess[str]:
    """Ctrl-C as a terminal sends it, to all processes of the command."""
    command = [*COMMAND, "--workers", str(workers), "--out", str(folder)]
    # A job in the background of a script ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    records = folder / (RECORDS if after_records else "runs.jsonl")
    while not records.exists() or not records.stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while (left := living(process.pid)) and time.monotonic() < deadline:  # Python's own helper ends after its parent
        time.sleep(0.05)
    assert left == []
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes from /proc")
@pytest.mark.parametrize(
    ("workers", "after_records"), [(2, True), pytest.param(2, False, marks=pytest.mark.slow), pytest.param(0, True, marks=pytest.mark.slow)]
)
def test_ctrl_c(workers: int, after_records: bool, tmp_path: Path) -> None:
    """In the middle of the work, and while the workers are still starting."""
    rng = random.Random(f"{workers}{after_records}")
    done = interrupted(tmp_path / "run", workers, rng.uniform(0, 0.5), after_records)
    assert done.returncode == 130
    message = f"interrupted; the records in {tmp_path / 'run'} are complete up to here; run the same command to resume"
    assert done.stderr.strip() == message and "Traceback" not in done.stdout
    kept = comparable(tmp_path / "run") if after_records else {}
    assert len(kept) < 96
    if after_records and workers:
        again = subprocess.run(
            [*COMMAND, "--workers", "2", "--out", str(tmp_path / "run")], check=True, capture_output=True, env=ENVIRONMENT, text=True
        )
        assert again.stderr == ""
        whole = comparable(tmp_path / "run")
        assert len(whole) == 96 and kept and all(whole[key] == record for key, record in kept.items())


@pytest.mark.parametrize("unread", [False, True])
def test_a_worker_ends_quietly_with_its_parent(unread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the parent was gone before it read the last answer, which the operating system reports in another way."""
    ours, theirs = multiprocessing.Pipe()
    if unread:
        theirs.send("an answer")
    ours.close()
    signals: list[tuple[Any, Any]] = []
    monkeypatch.setattr(pool.signal, "signal", lambda *arguments: signals.append(arguments))  # this process is no worker
    with theirs:
        pool._serve(theirs, Models(), [], 1)
    assert signals[-1] == (signal.SIGTERM, signal.SIG_IGN)  # which would come in the middle of the interpreter's end


def grown(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file is longer than now, or the command has ended."""
    before = path.stat().st_size if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_size > before):
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_thirty_times(tmp_path: Path) -> None:
    """kill -9 at thirty random moments, each followed by the same command: the records of an uninterrupted run. A few kills hit the command
    while it starts or loads models, most while it works; where it gets to the end first, another folder is begun.
    """
    subprocess.run([*COMMAND, "--out", str(tmp_path / "whole")], check=True, capture_output=True, env=ENVIRONMENT)
    rng = random.Random(0)
    folders, kills, lengths = [tmp_path / "killed-0"], 0, set[int]()
    while kills < 30:
        process = subprocess.Popen(
            [*COMMAND, "--out", str(folders[-1])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        if kills % 5:
            grown(folders[-1] / ("runs.jsonl" if kills % 5 == 1 else RECORDS), process)
        try:
            process.wait(rng.uniform(0, 1.5 if kills % 5 else 4))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            records = folders[-1] / RECORDS
            lengths.add(records.stat().st_size if records.exists() else 0)
        else:
            assert process.returncode == 0
            folders.append(tmp_path / f"killed-{len(folders)}")
    assert len(lengths) > 5  # they did hit it at work
    for folder in folders:
        subprocess.run([*COMMAND, "--out", str(folder)], check=True, capture_output=True, env=ENVIRONMENT)
        keys = [Key.of(record) for record in read_records(folder)]
        assert len(keys) == len(set(keys)) == 96
        assert (folder / RECORDS).read_bytes().count(b"\n") == 96  # none doubled in the file either
        assert comparable(folder) == comparable(tmp_path / "whole")
