"""The record store: nothing written is lost, nothing is doubled, nothing is mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_llm.evaluation import Key, RecordStore, read_records
from ppl_llm.evaluation.records import RECORDS

SETTINGS = {"lm": "demo", "temperature": 0.7}


def record(problem: str, budget: int = 4, **more: Any) -> dict[str, Any]:
    return {"problem": problem, "method": "smc", "budget": budget, "seed": 0, "answer": "7", **more}


def test_append_and_read(tmp_path: Path) -> None:
    with RecordStore(tmp_path / "run", SETTINGS) as store:
        assert store.append([record("p1"), record("p2", answer="ünï\n")]) == 2
        assert store.append([record("p2"), record("p3")]) == 1
        assert Key("p3", "smc", 4, 0) in store and Key("p3", "smc", 8, 0) not in store and len(store) == 3
    with RecordStore(tmp_path / "run", dict(SETTINGS)) as store:
        assert len(store) == 3 and store.append([record("p1")]) == 0
    assert [r["problem"] for r in read_records(tmp_path / "run")] == ["p1", "p2", "p3"]
    assert list(read_records(tmp_path / "run"))[1]["answer"] == "ünï\n"


@given(cut=st.integers(0, 10_000))
def test_a_crash_at_any_byte_loses_only_the_line_it_hit(cut: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RecordStore(folder, SETTINGS) as store:
        for i in range(4):
            store.append([record(f"problem {i}")])
    path = folder / RECORDS
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert len(list(read_records(folder))) == complete
    with RecordStore(folder, SETTINGS) as store:
        assert len(store) == complete
        assert store.append([record(f"problem {i}") for i in range(4)]) == 4 - complete
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with RecordStore(tmp_path, SETTINGS) as store:
        store.append([record("p1"), record("p2")])
    path = tmp_path / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:-10] + b"\n" + lines[1])
    with pytest.raises(ValueError, match=r"line 1 of .* is not a record"):
        list(read_records(tmp_path))
    path.write_bytes(json.dumps({"problem": "p"}).encode() + b"\n" + lines[0])
    with pytest.raises(ValueError, match=r"line 1 of .*'method'"), RecordStore(tmp_path, SETTINGS):
        pass


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    with RecordStore(tmp_path, SETTINGS):
        pass
    with pytest.raises(ValueError, match=r"temperature: 0.7 there, 1.0 now.*choose another folder"):
        RecordStore(tmp_path, {**SETTINGS, "temperature": 1.0}).__enter__()
    with RecordStore(tmp_path, SETTINGS):  # the refusal left no lock behind
        pass


def test_a_setting_that_did_not_exist_and_is_not_used_is_no_other_setting(tmp_path: Path) -> None:
    with RecordStore(tmp_path, {"a": 1, "judge": {"thoughts": 2}}):
        pass
    with RecordStore(tmp_path, {"a": 1, "later": None, "judge": {"thoughts": 2, "yes": None}}):
        pass
    with pytest.raises(ValueError, match="later: None there, 2 now"), RecordStore(tmp_path, {"a": 1, "later": 2, "judge": {"thoughts": 2}}):
        pass
    with pytest.raises(ValueError, match=r"\(judge: .*'Ja'"), RecordStore(tmp_path, {"a": 1, "judge": {"thoughts": 2, "yes": "Ja"}}):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RecordStore(tmp_path, SETTINGS), pytest.raises(OSError, match="another process is writing"):
        RecordStore(tmp_path, SETTINGS).__enter__()


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with RecordStore(tmp_path, SETTINGS) as store:
        with pytest.raises(ValueError, match="JSON"):
            store.append([record("p1"), record("p2", log_evidence=float("nan"))])
        assert len(store) == 0
    assert list(read_records(tmp_path)) == []


def test_missing_and_unwritable_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no records in"):
        list(read_records(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the run's folder"):
        RecordStore(tmp_path / "file" / "run", SETTINGS).__enter__()


def test_a_full_disk_gives_one_error_and_keeps_what_was_written(tmp_path: Path) -> None:
    """The file size limit of a process stands for the disk: writes beyond it are cut short, then refused."""
    script = """
        import resource, signal, sys
        from ppl_llm.evaluation import RecordStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with RecordStore(sys.argv[1], {}) as store:
            for i in range(100):
                store.append([{"problem": f"p{i}", "method": "smc", "budget": 1, "seed": 0, "text": "x" * 300}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True)
    assert "earlier records are safe" in done.stderr
    kept = list(read_records(tmp_path))
    assert [r["problem"] for r in kept] == [f"p{i}" for i in range(len(kept))] and 3 < len(kept) < 7
    assert (tmp_path / RECORDS).read_bytes().endswith(b"\n")


def test_kill_nine_in_the_middle_of_appending(tmp_path: Path) -> None:
    script = """
        import sys
        from ppl_llm.evaluation import RecordStore
        with RecordStore(sys.argv[1], {}) as store:
            print("ready", flush=True)
            for i in range(10**6):
                store.append([{"problem": f"p{i}", "method": "smc", "budget": 1, "seed": 0, "text": "x" * 3000}])
    """
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        while not (tmp_path / RECORDS).exists() or os.stat(tmp_path / RECORDS).st_size < 50_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with RecordStore(tmp_path, {}) as store:
            names = [r["problem"] for r in read_records(tmp_path)]
            assert names == [f"p{i}" for i in range(len(store))] and len(store) > 10
