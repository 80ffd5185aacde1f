"""A disk that is full and a folder that cannot be written to: one clear error, nothing lost, and the same command resumes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppl_llm.cli import app
from ppl_llm.evaluation import Key, RecordStore, read_records
from ppl_llm.evaluation.records import CONFIGURATION, RECORDS
from tests.helpers.runs import write_run

COMMAND = ["evaluate", "demo", "--limit", "6", "--group-size", "1", "--methods", "importance", "--budgets", "2,8", "--max-steps", "3"]
Remount = Callable[[str], None]


@pytest.fixture
def disk() -> Iterator[tuple[Path, Remount]]:
    """A file system of its own in memory, and what changes its options."""
    folder = Path(tempfile.mkdtemp(prefix="ppl-llm-disk-"))

    def mount(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)

    if shutil.which("mount") is None or (done := mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")).returncode:
        folder.rmdir()
        pytest.skip(f"mounting a small file system is refused here: {done.stderr.strip() if shutil.which('mount') else 'no mount'}")
    try:
        yield folder, lambda options: mount("-o", f"remount,{options}").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def evaluate(folder: Path) -> Any:
    return CliRunner().invoke(app, [*COMMAND, "--out", str(folder)])


def one_error(done: Any) -> str:
    """The only line on stderr, of a run that failed as it should."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.output
    return str(lines[0])


def comparable(folder: Path) -> dict[Key, Any]:
    return {Key.of(r): {name: value for name, value in r.items() if name not in ("seconds", "cost")} for r in read_records(folder)}


def test_a_full_disk(disk: tuple[Path, Remount], tmp_path: Path) -> None:
    """Full before the first record, then in the middle of the run, then large enough."""
    folder, remount = disk
    assert evaluate(tmp_path / "whole").exit_code == 0
    whole = (tmp_path / "whole" / RECORDS).stat().st_size
    filler = folder / "filler"
    filler.write_bytes(b"x" * 64 * 1024)
    assert "No space left on device" in one_error(evaluate(folder / "run"))
    filler.unlink()
    filler.write_bytes(b"x" * (64 * 1024 - 2 * 4096 - whole // 2 // 4096 * 4096))  # room for about half of the records
    message = one_error(evaluate(folder / "run"))
    assert "No space left on device; earlier records are safe, make room and run the same command again" in message
    kept = (folder / "run" / RECORDS).read_bytes()
    records = comparable(folder / "run")
    assert 0 < len(records) < 12 and kept.endswith(b"\n")
    assert one_error(evaluate(folder / "run")) == message  # still full: the same error, and nothing has changed
    assert (folder / "run" / RECORDS).read_bytes() == kept
    remount("size=4m")
    assert evaluate(folder / "run").exit_code == 0
    assert (folder / "run" / RECORDS).read_bytes().startswith(kept)
    assert comparable(folder / "run") == comparable(tmp_path / "whole")


def test_a_read_only_disk(disk: tuple[Path, Remount]) -> None:
    folder, remount = disk
    remount("size=4m")
    write_run(folder / "run", problems=range(3), seeds=1)
    assert evaluate(folder / "mine").exit_code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    remount("ro")
    assert "cannot write to the run's folder" in (message := one_error(evaluate(folder / "mine"))) and "Read-only file system" in message
    assert "Read-only file system" in one_error(evaluate(folder / "other"))
    report = CliRunner().invoke(app, ["report", str(folder / "run")])
    assert "cannot write the report" in one_error(report) and "the records are as they were" in report.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    remount("rw")
    assert evaluate(folder / "mine").exit_code == 0
    assert (folder / "mine" / RECORDS).read_bytes() == before[folder / "mine" / RECORDS]


def test_a_folder_without_permission() -> None:
    """As a user whom permissions bind: root takes another's place for a while."""
    folder = Path(tempfile.mkdtemp(prefix="ppl-llm-denied-"))
    user = os.geteuid()
    try:
        with RecordStore(folder / "run", {"lm": "demo"}) as store:
            store.append([{"problem": "p", "method": "smc", "budget": 1, "seed": 0}])
        folder.chmod(0o755)
        for path in (folder / "run").iterdir():
            path.chmod(0o444)
        (folder / "run").chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        for name in ("run", "new") if user == 0 else ("run",):
            with pytest.raises(PermissionError, match=rf"cannot write to the run's folder '.*{name}': Permission denied"):
                RecordStore(folder / name, {"lm": "demo"}).__enter__()
        assert [record["problem"] for record in read_records(folder / "run")] == ["p"]
    finally:
        os.seteuid(user)
        (folder / "run").chmod(0o755)
        shutil.rmtree(folder)


def test_a_configuration_that_does_not_fit_leaves_no_half_of_one(disk: tuple[Path, Remount]) -> None:
    folder, remount = disk
    with pytest.raises(OSError, match=r"cannot write to the run's folder .*No space left on device"):
        RecordStore(folder, {"lm": "x" * 100_000}).__enter__()
    assert not (folder / CONFIGURATION).exists() and not list(folder.glob("*.tmp"))
    remount("size=4m")
    with RecordStore(folder, {"lm": "x" * 100_000}) as store:
        assert len(store) == 0


def test_a_store_that_leaves_half_a_batch_is_noticed(disk: tuple[Path, Remount], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cutting off what a full disk left of a write, the next reader meets half a line: this test must see the difference."""
    folder, remount = disk
    rows = [{"problem": f"p{i}", "method": "smc", "budget": 1, "seed": 0, "text": "x" * 2000} for i in range(60)]
    monkeypatch.setattr(os, "ftruncate", lambda file, size: None)
    with RecordStore(folder, {}) as store, pytest.raises(OSError, match="earlier records are safe"):
        store.append(rows)
    assert not (folder / RECORDS).read_bytes().endswith(b"\n")
    monkeypatch.undo()
    remount("size=4m")
    with RecordStore(folder, {}) as store:
        assert 0 < len(store) < 60  # repaired on opening, but a batch was torn apart
        store.append(rows)
        assert len(store) == 60
