"""Arguments of another type than their annotation says, refused by name where a user passes them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


class _Kind(NamedTuple):
    """What a part of an annotation allows, and how to say so."""

    words: str
    allows: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(kind: _Kind | None) -> _Kind:
    """A list of values of a kind, or of any; what can be gone through once only is not looked into."""

    def allows(value: Any) -> bool:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | Tensor):
            return False
        return kind is None or not isinstance(value, Sequence) or all(map(kind.allows, value))

    return _Kind("a list" if kind is None else f"a list, each {kind.words}", allows)


_KINDS: dict[str, _Kind] = {
    "None": _Kind("None", lambda value: value is None),
    "bool": _Kind("True or False", lambda value: isinstance(value, bool)),
    "int": _Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": _Kind("a number", _is_number),
    "str": _Kind("a string", lambda value: isinstance(value, str)),
    "Callable": _Kind("a function", callable),
    "Mapping": _Kind("a mapping", lambda value: isinstance(value, Mapping)),
    "Tensor": _Kind("a tensor", lambda value: isinstance(value, Tensor)),
}

_WORDS: dict[str, str] = {}


def describe(name: str, words: str) -> None:
    """How messages call the values of a class."""
    _WORDS[name] = words


def checked(fn: Callable[P, T]) -> Callable[P, T]:
    """A function, or a constructor, that refuses arguments which its annotations rule out.

    Looked at are ``bool``, ``float``, ``str``, functions, mappings, tensors, lists of these, classes, and ``|`` of them; what else an
    annotation says is left to the function. So are integers, whose range ``check_count`` knows.

    Numbers of numpy come to the function as those of Python, which the settings of a saved run can hold; arrays and iterators as lists,
    where a ``Sequence`` is asked for.

    :raises ValueError: naming the argument.
    """
    names = list(inspect.signature(fn).parameters)
    lists = {name for name, annotation in fn.__annotations__.items() if "Sequence[" in str(annotation)}
    kinds: dict[str, tuple[_Kind, ...]] | None = None  # classes are looked up at the first call

    def known(name: str | None, value: Any) -> Any:
        assert kinds is not None
        value = _plain(value, name in lists)
        if name in kinds:
            _check(name, value, kinds[name])
        return value

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal kinds
        if kinds is None:
            kinds = _kinds_of(fn.__annotations__, fn.__globals__)
        given: Any = [known(name, value) for name, value in zip_longest(names[: len(args)], args)]
        named: Any = {name: known(name, value) for name, value in kwargs.items()}
        return fn(*given, **named)

    return wrapper


def _plain(value: Any, is_list: bool) -> Any:
    """Numbers of numpy as those of Python; a list of what can be gone through once only."""
    if isinstance(value, np.generic):
        return value.item()
    if is_list and isinstance(value, np.ndarray):
        return value.tolist()
    if is_list and isinstance(value, Iterator):
        return list(value)
    if is_list and isinstance(value, list | tuple) and any(isinstance(each, np.generic) for each in value):
        return [_plain(each, False) for each in value]
    return value


def check_fields(made: Any) -> None:
    """The same of the fields of a dataclass, for its ``__post_init__``."""
    kind = type(made)
    if kind not in _FIELDS:
        _FIELDS[kind] = _kinds_of(kind.__annotations__, vars(sys.modules[kind.__module__]))
    for name, kinds in _FIELDS[kind].items():
        _check(name, getattr(made, name), kinds)


_FIELDS: dict[type, dict[str, tuple[_Kind, ...]]] = {}
"""Of each dataclass that was made."""


def _check(name: str, value: Any, kinds: tuple[_Kind, ...]) -> None:
    if any(kind.allows(value) for kind in kinds):
        return
    shown = repr(value)
    shown = shown if len(shown) <= 200 and "\n" not in shown else f"a {type(value).__name__}"
    raise ValueError(f"{name} must be {' or '.join(kind.words for kind in kinds)}, got {shown}")


def _kinds_of(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, tuple[_Kind, ...]]:
    """Of each argument whose annotation is understood in every part."""
    found = {}
    for name, annotation in annotations.items():
        parts = _parts(annotation) if isinstance(annotation, str) else []
        kinds = [_kind_of(part, names) for part in parts]
        known = [kind for kind in kinds if kind is not None]
        if name != "return" and known and len(known) == len(kinds) and not set(parts) <= {"int", "None"}:
            found[name] = tuple(sorted(known, key=lambda kind: kind.words == "None"))
    return found


def _kind_of(part: str, names: Mapping[str, Any]) -> _Kind | None:
    head, _, inner = part.partition("[")
    if head in ("Sequence", "Iterable"):
        return _list_of(_kind_of(inner.removesuffix("]"), names))
    if head in _KINDS:
        return _KINDS[head]
    made = names.get(part)
    if getattr(made, "__origin__", None) is Callable:  # an alias
        return _Kind(_WORDS.get(part, "a function"), callable)
    if not inspect.isclass(made) or made is Any:
        return None
    if getattr(made, "_is_protocol", False) and not getattr(made, "_is_runtime_protocol", False):
        return None
    return _Kind(_WORDS.get(part, f"a {part}"), lambda value: isinstance(value, made))


def _parts(annotation: str) -> list[str]:
    """The alternatives of ``A | B[C | D] | None``."""
    parts, depth = [""], 0
    for character in annotation:
        depth += (character == "[") - (character == "]")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
