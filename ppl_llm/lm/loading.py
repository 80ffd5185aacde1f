"""Finding and loading models: safetensors only, never code from a model's directory, and errors that say what to do."""

from __future__ import annotations

import difflib
import importlib.util
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..inference.util.validation import unknown_name

_DEMO = Path(__file__).parents[1] / "demo"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_DEMO_DIRECTORIES = {"lm": {"demo": "lm"}, "prm": {"demo": "prm", "demo-weak": "weak_prm"}, "orm": {}}

_KINDS = {"lm": "language model", "prm": "process reward model", "orm": "outcome reward model"}
_GGUF = ".gguf"

DTYPES = ("float32", "bfloat16", "float16")


def check_network(model: Any) -> None:
    """
    :raises ValueError: for what is no model of transformers, such as its name.
    """
    if not hasattr(model, "config") or not callable(getattr(model, "eval", None)):
        raise ValueError(f"model must be a model of transformers that is loaded; from_pretrained({model!r}) loads one, got {model!r}")


def locate(name_or_path: str | Path, kind: str) -> str:
    """A directory that holds a model, a GGUF file, or a name on the Hugging Face Hub.

    :param name_or_path: a directory, a file in GGUF format, a hub name, or the name of a model inside this package.
    :param str kind: ``lm``, ``prm`` or ``orm``; only language models are read from GGUF files.
    :raises OSError: if there is no such directory or file, or it holds no model in safetensors format, or gguf is not installed.
    """
    name = str(name_or_path)
    if not name.strip():
        raise OSError(f"the name of the {_KINDS[kind]} is empty: give a directory, a hub name or {_packaged(kind)}")
    packaged = _DEMO_DIRECTORIES[kind].get(name)
    path = Path(name).expanduser() if packaged is None else _DEMO / packaged
    if is_gguf(name):
        return _gguf_file(path, kind)
    if not path.is_dir():
        if packaged is not None:
            raise OSError(f"the demo model {name!r} is missing from this installation: no directory {path}")
        if path.is_file():
            raise OSError(f"{name!r} is a file: give the directory that holds config.json and *.safetensors, or a file *.gguf")
        if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise OSError(f"no model directory {name!r}: give a directory that holds config.json and *.safetensors, or a hub name")
        return name
    if not (path / "config.json").is_file():
        raise OSError(f"the directory {str(path)!r} holds no config.json, hence no transformers model")
    if not any(path.glob("*.safetensors")):
        if ggufs := sorted(file.name for file in path.glob(f"*{_GGUF}")):
            raise OSError(f"the directory {str(path)!r} holds GGUF files and no *.safetensors: give one of them, {', '.join(ggufs[:4])}")
        raise OSError(
            f"the directory {str(path)!r} holds no *.safetensors file, and other formats can run code when they are loaded; convert it: "
            "load it with transformers where you trust it and call save_pretrained(directory)"
        )
    return str(path)


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a file in GGUF format."""
    return name.lower().endswith(_GGUF)


def _gguf_file(path: Path, kind: str) -> str:
    if not path.is_file():
        raise OSError(f"there is no GGUF file {str(path)!r}")
    if kind != "lm":
        raise OSError(f"{str(path)!r} is a GGUF file, from which only language models are read; a {_KINDS[kind]} needs a directory")
    if importlib.util.find_spec("gguf") is None:
        raise OSError(f"{str(path)!r} is a GGUF file, and reading it needs gguf: pip install 'ppl-llm[gguf]'")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise OSError(f"{str(path)!r} is not in GGUF format: its first bytes are not GGUF; download or convert the model again")
    return str(path)


def _packaged(kind: str) -> str:
    names = [repr(name) for name in _DEMO_DIRECTORIES[kind]]
    return f"one of this package's, {' or '.join(names)}" if names else "the path of one"


def _where(source: str) -> tuple[str, dict[str, str]]:
    """What transformers calls a model: a directory or hub name, and the file in it."""
    if not is_gguf(source):
        return source, {}
    return str(Path(source).parent), {"gguf_file": Path(source).name}


def _reading_errors(source: str) -> tuple[type[Exception], ...]:
    """What transformers raises for what it cannot read. Its readers of GGUF files do not check for an early end."""
    return (OSError, ValueError, KeyError, IndexError, struct.error) if is_gguf(source) else (OSError,)


def load(cls: Any, source: str, own_attention: bool = True, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A model in evaluation mode, and what transformers reports about missing and unexpected keys.

    :param cls: a transformers model class or auto class.
    :param bool own_attention: whether its attention function is that of this package; otherwise transformers chooses.
    :raises OSError: if ``source`` cannot be read, neither here nor from the hub.
    :raises ValueError: if its weights do not have the shapes that its config asks for, or an option is not for the caller to set.
    """
    from ..kv_cache.attention import PACKED

    attention = PACKED if own_attention else None
    fixed = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True, "attn_implementation": attention}
    for name in fixed.keys() & kwargs.keys():
        always = "chosen for the model" if fixed[name] is None else f"always {fixed[name]!r}"
        raise ValueError(f"{name} is {always} here, got {kwargs[name]!r}; load the model yourself and pass it to the constructor")
    kwargs = {name: value for name, value in (fixed | kwargs).items() if value is not None}
    where, file = _where(source)
    if file:  # weights are dequantised, and no number format of a checkpoint is there to be followed
        kwargs.setdefault("dtype", torch.float32)
    try:
        with _no_bars_that_nobody_sees(source):
            model, report = cls.from_pretrained(where, **file, **kwargs)
    except _reading_errors(source) as error:
        raise unreachable(source, error) from error
    except RuntimeError as error:
        raise ValueError(f"the weights in {source!r} do not fit its config.json: {error}") from error
    return model.eval(), report


@contextmanager
def _no_bars_that_nobody_sees(source: str) -> Iterator[None]:
    """No progress bars where there is no terminal or notebook, nor for the models inside this package, which load in a moment."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    seen = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    before = logging.is_progress_bar_enabled()
    if before and (not seen or Path(source).resolve().is_relative_to(_DEMO.resolve())):
        logging.disable_progress_bar()
    bar = getattr(gguf_reader, "tqdm", None)
    if not logging.is_progress_bar_enabled() and bar is not None:  # it asks nobody
        gguf_reader.tqdm = lambda tensors, **options: tensors
    try:
        yield
    finally:
        if bar is not None:
            gguf_reader.tqdm = bar
        if before:
            with warnings.catch_warnings():  # the Hub's own bars stay off where the environment says so, with a warning
                warnings.simplefilter("ignore")
                logging.enable_progress_bar()


def load_tokenizer(source: str) -> Any:
    """The tokenizer beside a model.

    :raises OSError: if there is none.
    """
    from transformers import AutoTokenizer

    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would silently make an empty tokenizer of the model's usual class.
        raise OSError(
            f"the directory {source!r} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}): copy the model's tokenizer there"
        )
    where, file = _where(source)
    try:
        return AutoTokenizer.from_pretrained(where, **file, trust_remote_code=False)
    except _reading_errors(source) as error:
        raise unreachable(source, error) from error


def unreachable(source: str, error: Exception) -> OSError:
    """The error for a model that cannot be read."""
    if Path(source).is_file():
        return OSError(f"cannot load the model file {source!r}, which is incomplete or of a kind that transformers does not read: {error}")
    if Path(source).exists():
        return OSError(f"cannot load the model directory {source!r}: {error}")
    near = difflib.get_close_matches(source, {name for names in _DEMO_DIRECTORIES.values() for name in names}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return OSError(
        f"{source!r} is neither a directory here nor a model that could be fetched from the Hugging Face Hub (wrong name, no access, or no "
        f"network{hint}); without a network give the directory of a downloaded model. The hub said: {error}"
    )


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of this name; ``None``, that of the checkpoint, stays.

    :raises ValueError: for an unknown name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    dtype: torch.dtype = getattr(torch, name)
    return dtype
