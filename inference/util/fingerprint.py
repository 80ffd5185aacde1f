"""Fingerprints of settings: plain values that tell whether two runs have the same ones."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from pyro.poutine.messenger import _bound_partial

from .safe_file import is_plain


def name_of(thing: Any) -> str | None:
    """How a function, class or object is told from another of its kind; a model in a handler shows the handler's numbers too."""
    if thing is None:
        return None
    if isinstance(thing, _bound_partial):
        handler, wrapped = thing.func.args
        shown = ", ".join(f"{key}={value!r}" for key, value in vars(handler).items() if isinstance(value, (bool, int, float, str)))
        return f"{type(handler).__qualname__}({shown})({name_of(wrapped)})"
    if is_dataclass(thing) and not isinstance(thing, type):
        return repr(thing)
    return str(getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or type(thing).__qualname__)


def of_model(model: Any) -> dict[str, Any]:
    """The plain ones among what a model, inside its handlers, tells of itself as ``settings``, a dictionary."""
    while isinstance(model, _bound_partial):
        model = model.func.args[1]
    told = getattr(model, "settings", None)
    return {f"model {name}": value for name, value in told.items() if is_plain(value)} if isinstance(told, dict) else {}
