"""Results that survive anything: an append-only file of records, one line each."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

RECORDS, CONFIGURATION = "records.jsonl", "configuration.json"


def records_file(shard: int) -> str:
    """Where the writer number ``shard`` writes."""
    return RECORDS if shard == 0 else f"records-{shard}.jsonl"


class Key(NamedTuple):
    """What identifies a record."""

    problem: str
    method: str
    budget: int
    seed: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Key:
        """The key of a record."""
        return cls(record["problem"], record["method"], record["budget"], record["seed"])


class RecordStore:
    """A folder with ``records.jsonl`` and the configuration that its records were made with.

    Every append is one write, flushed and synchronised. A last line that a crash left incomplete is removed on opening; the work that it
    stood for is then missing and done again. A lock keeps a second process out. Use it as a context. Several processes may write to one
    folder as different shards, each to its own file.

    :param folder: created where it does not exist.
    :param dict configuration: plain values; the records of one folder share it.
    :param int shard: number of this writer; the first writes ``records.jsonl``.
    :raises ValueError: if the folder was made with another configuration, showing the difference, or holds a damaged line.
    :raises OSError: if the folder cannot be written to, or another process has it open.
    """

    def __init__(self, folder: str | Path, configuration: dict[str, Any], shard: int = 0) -> None:
        self.folder = Path(folder)
        self.path = self.folder / records_file(shard)
        self.configuration: dict[str, Any] = json.loads(json.dumps(configuration))
        self._keys: set[Key] = set()

    def __enter__(self) -> RecordStore:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(error.errno, f"cannot write to the run's folder {str(self.folder)!r}: {error.strerror}") from error
        try:
            self._take_lock()
            self._check_configuration()
            self._repair()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._keys = {Key.of(record) for record in read_records(self.folder)}
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"another process is writing to {str(self.folder)!r}; wait for it, or choose another folder"
            raise OSError(error.errno, message) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)
        os.close(self._lock)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, records: Iterable[dict[str, Any]]) -> int:
        """Add records that are not there yet, all in one write.

        :returns: how many were new.
        :raises OSError: if they cannot be written (a full disk): the file is then as it was before.
        :raises ValueError: for a record with a number that is not finite, which JSON does not have.
        """
        new = {Key.of(record): record for record in records if Key.of(record) not in self._keys}
        append_whole(self._file, self.path, "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in new.values()))
        self._keys.update(new)
        return len(new)

    def _repair(self) -> None:
        """Cut off an incomplete last line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)

    def _write_configuration(self, path: Path) -> None:
        draft = self.path.with_suffix(".tmp")
        try:
            with open(draft, "w") as file:
                file.write(json.dumps(self.configuration, indent=2, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot write to the run's folder {str(self.folder)!r}: {error.strerror}") from error

    def _check_configuration(self) -> None:
        path = self.folder / CONFIGURATION
        if not path.exists():
            self._write_configuration(path)
            return
        before = json.loads(path.read_text())
        changed = differences(before, self.configuration)
        if not changed:  # a setting that was not there yet, and is not used now, is none that differs
            return
        shown = "; ".join(f"{name}: {there!r} there, {now!r} now" for name, (there, now) in changed.items())
        raise ValueError(f"the records in {str(self.folder)!r} were made with other settings ({shown}); choose another folder")


def append_whole(file: int, path: Path, text: str) -> None:
    """Append all of a text to an open file and synchronise it, or nothing.

    :param Path path: of the file, for the message.
    :raises OSError: if it cannot be written, with what to do: the file is then as it was before.
    """
    size = os.fstat(file).st_size
    rest = memoryview(text.encode())
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError as error:
        os.ftruncate(file, size)
        message = f"cannot write to {str(path)!r}: {error.strerror}; earlier records are safe, make room and run the same command again"
        raise OSError(error.errno, message) from error


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries in which two configurations differ, with both values; ``None`` stands for what one does not have."""
    names = sorted({*first, *second})
    return {name: (first.get(name), second.get(name)) for name in names if not _alike(first.get(name), second.get(name))}


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return not differences(first, second)
    return bool(first == second)


def read_records(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a run's folder, in the order they were written; an incomplete last line is passed over, and so are repetitions.

    :raises FileNotFoundError: if there are none.
    :raises ValueError: for a damaged line, with its number.
    """
    paths = sorted(Path(folder).glob("records*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"there are no records in {str(folder)!r}; make some with: ppl-llm evaluate ... --out {folder}")
    seen: set[Key] = set()
    for path in paths:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    key = Key.of(record)
                except (ValueError, KeyError, TypeError) as error:
                    message = f"line {number} of {str(path)!r} is not a record ({error}); remove the line and run again"
                    raise ValueError(message) from error
                if key not in seen:
                    seen.add(key)
                    yield record
