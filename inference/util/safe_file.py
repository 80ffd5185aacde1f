"""Files of plain values and tensors, written atomically and read without executing code from them."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PLAIN = (str, bytes, bool, int, float, type(None))


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts, ``None`` and tensors, in lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return type(value) is dict and all(isinstance(key, _PLAIN) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return type(value) in _PLAIN or type(value) is Tensor


def same(first: Any, second: Any) -> bool:
    """Equality of plain values; nan equals nan."""
    return type(first) is type(second) and digest(first) == digest(second)


def digest(value: Any) -> str:
    """SHA-256 of a plain value."""
    sha = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, Tensor):
            sha.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
            sha.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            sha.update(f"dict {len(part)};".encode())
            for key, item in part.items():
                feed(key)
                feed(item)
        elif isinstance(part, (list, tuple)):
            sha.update(f"list {len(part)};".encode())
            for item in part:
                feed(item)
        else:
            sha.update(f"{type(part).__name__} {part!r};".encode())

    feed(value)
    return sha.hexdigest()


def write(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write a plain dictionary; a reader finds the old file or the whole new one, whenever the process dies.

    :raises OSError: if the directory cannot be written to.
    """
    path = path.absolute()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"kind": kind, "version": version, "digest": digest(content), "content": content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path, kind: str, version: int) -> dict[str, Any]:
    """
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not a file of this kind and version, or damaged.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about files that are no such file
        try:
            # Tensors of a GPU can be looked at where there is none.
            stored = torch.load(file, weights_only=True, map_location=None if torch.cuda.is_available() else "cpu")
        except Exception as error:  # what is damaged may fail in any way
            raise ValueError(f"{path} cannot be read as a {kind}: it is damaged, cut off, or another kind of file ({error})") from error
    if not isinstance(stored, dict) or stored.get("kind") != kind:
        raise ValueError(f"{path} is not a {kind}")
    if stored.get("version") != version:
        raise ValueError(f"{path} is a {kind} of format {stored.get('version')!r}, this program reads format {version}; write it again")
    content: dict[str, Any] = stored.get("content", {})
    if digest(content) != stored.get("digest"):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum")
    return content
